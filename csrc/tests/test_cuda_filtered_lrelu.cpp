// Filtered leaky ReLU on the emulated GPU against the processor: factors that are compiled for and others, separable
// and two-dimensional filters, slopes computed, written and read, several tiles and parts of one, every storage type.
#include <limits>

#include "emulated.h"

using namespace fastvfx;

namespace {

struct Case {
  DType dtype = DType::f32;
  int up = 2, down = 2, up_taps = 12, down_taps = 12;
  bool up_separable = true, down_separable = true, flip = false;
  int64_t left = 9, right = 8;
  double clamp = 0.6;
  bool bias = true;
  int64_t height = 9, width = 40;
};

struct Sides {
  int64_t height, width;
};

int64_t outputs(int64_t size, const Case& c) {
  return (size * c.up + c.left + c.right - (c.up_taps - 1) - c.down_taps) / c.down + 1;
}

class Workload {
 public:
  explicit Workload(const Case& c)
      : c_(c),
        wide_(accumulation_of(c.dtype)),
        fu_(wide_, c.up_separable ? c.up_taps : c.up_taps * c.up_taps),
        fd_(wide_, c.down_separable ? c.down_taps : c.down_taps * c.down_taps),
        bias_(wide_, kChannels),
        out_{outputs(c.height, c), outputs(c.width, c)},
        x_(c.dtype, kPlanes * c.height * c.width),
        g_(c.dtype, kPlanes * out_.height * out_.width) {
    Random random{11};
    const auto centred = [&] { return random() - 0.5; };
    for (Array* array : {&fu_, &fd_, &bias_, &x_, &g_}) array->fill(centred);
  }

  void check() const {
    forward(SlopeMask::none);
    // Each processor keeps the slopes in an order of its own.
    auto a = forward(SlopeMask::write);
    std::unique_ptr<uint8_t[]> on_gpu(new uint8_t[gpu_mask_bytes(a)]), on_cpu(new uint8_t[size_t(1) << 20]);
    Array out(c_.dtype, kPlanes * out_.height * out_.width);
    a.out = out.data();
    a.mask = on_gpu.get();
    cuda::filtered_lrelu_pass(a);
    a.mask = on_cpu.get();
    cpu::filtered_lrelu_pass(a);

    a.mask_mode = SlopeMask::read;
    compare("with slopes read", a, out_, on_gpu.get(), on_cpu.get());

    // Transposed: the filters change places.
    a.mask_top = a.mask_left = c_.up_taps - 1 - c_.left;
    a.left = a.top = a.mask_left + c_.down_taps - 1;
    a.up = c_.down;
    a.down = c_.up;
    a.fu = filter(fd_, c_.down_taps, c_.down_separable, !c_.flip);
    a.fd = filter(fu_, c_.up_taps, c_.up_separable, !c_.flip);
    a.x = g_.data();
    a.bias = nullptr;
    a.height = out_.height;
    a.width = out_.width;
    a.out_height = c_.height;
    a.out_width = c_.width;
    compare("transposed", a, {c_.height, c_.width}, on_gpu.get(), on_cpu.get());
  }

 private:
  static constexpr int64_t kPlanes = 4, kChannels = 2;

  static FirFilter filter(const Array& taps, int n, bool separable, bool flip) {
    return {taps.data(), n, n, separable, flip};
  }

  static size_t gpu_mask_bytes(const FilteredLrelu& a) {
    return size_t(a.planes * a.mask_height * ((a.mask_width + 15) / 16) * 4);
  }

  FilteredLrelu arguments(SlopeMask mode) const {
    FilteredLrelu a{};
    a.dtype = c_.dtype;
    a.planes = kPlanes;
    a.channels = kChannels;
    a.height = c_.height;
    a.width = c_.width;
    a.out_height = out_.height;
    a.out_width = out_.width;
    a.up = a.mask_up = c_.up;
    a.down = a.mask_down = c_.down;
    a.left = a.top = a.mask_padding = c_.left;
    a.fu = filter(fu_, c_.up_taps, c_.up_separable, c_.flip);
    a.fd = filter(fd_, c_.down_taps, c_.down_separable, c_.flip);
    a.scale = 1.4 * c_.up * c_.up;
    a.slope = 0.2;
    a.clamp = c_.clamp;
    a.mask_mode = mode;
    a.mask_height = (out_.height - 1) * c_.down + c_.down_taps;
    a.mask_width = (out_.width - 1) * c_.down + c_.down_taps;
    a.x = x_.data();
    a.bias = c_.bias ? bias_.data() : nullptr;
    a.threads = 1;
    return a;
  }

  FilteredLrelu forward(SlopeMask mode) const {
    auto a = arguments(mode);
    std::unique_ptr<uint8_t[]> on_gpu(new uint8_t[gpu_mask_bytes(a)]), on_cpu(new uint8_t[size_t(1) << 20]);
    compare(mode == SlopeMask::none ? "forward" : "with slopes written", a, out_, on_gpu.get(), on_cpu.get());
    return a;
  }

  void compare(const char* what, FilteredLrelu a, Sides size, uint8_t* on_gpu, uint8_t* on_cpu) const {
    Array got(c_.dtype, kPlanes * size.height * size.width), want(c_.dtype, kPlanes * size.height * size.width);
    a.out = got.data();
    a.mask = on_gpu;
    cuda::filtered_lrelu_pass(a);
    a.out = want.data();
    a.mask = on_cpu;
    cpu::filtered_lrelu_pass(a);
    near(std::string(what) + " " + name_of(c_.dtype) + " up=" + std::to_string(c_.up) +
             " down=" + std::to_string(c_.down) + " taps=" + std::to_string(c_.up_taps) + "," +
             std::to_string(c_.down_taps) + (c_.up_separable ? "" : " 2-D fu") + (c_.down_separable ? "" : " 2-D fd"),
         got, want, c_.dtype == DType::f16 || c_.dtype == DType::bf16 ? 2 : 300, 1);
  }

  const Case c_;
  const DType wide_;
  Array fu_, fd_, bias_;
  const Sides out_;
  Array x_, g_;
};

}  // namespace

int main() {
  return in_every_order([] {
    for (DType dtype : every_dtype) {
      Case c;
      c.dtype = dtype;
      Workload(c).check();
      c.down_separable = false;
      c.down_taps = 6;
      Workload(c).check();
    }
    Case up4;
    up4.up = 4;
    up4.up_taps = 24;
    up4.height = 12;
    up4.width = 13;
    up4.left = -5;
    Workload(up4).check();
    Case plain;
    plain.up = plain.down = plain.up_taps = plain.down_taps = 1;
    plain.left = plain.right = 0;
    plain.width = 67;
    Workload(plain).check();
    Case odd;
    odd.up = 3;
    odd.down = 5;
    odd.up_taps = 7;
    odd.down_taps = 4;
    odd.up_separable = false;
    odd.flip = true;
    odd.bias = false;
    odd.clamp = std::numeric_limits<double>::infinity();
    Workload(odd).check();
    Case large;  // flatter tiles, and more padding than image
    large.up_taps = 31;
    large.down_taps = 33;
    large.left = 40;
    large.right = 41;
    large.height = 6;
    large.width = 5;
    Workload(large).check();
    Case fewer;  // down by 4, the transposed one up by 4
    fewer.up = 1;
    fewer.down = 4;
    fewer.up_taps = 5;
    fewer.down_taps = 9;
    Workload(fewer).check();
  });
}
