// Convolutions with 3 x 3 taps by Winograd's transforms. A task takes a run of tiles and a group of output channels:
// it transforms its tiles of the image, multiplies them with the transformed weights, a block of output channels and
// one of input channels at a time, and transforms the sums back into the image. Weights are transformed once if there
// is room for them, else by each task, where they are still in the second cache when they are multiplied with.
#include "fastvfx/winograd.h"

#include "fastvfx/workspace.h"
#include "gemm.h"
#include "parallel.h"
#include "rows.h"
#include "scratch.h"

FVX_BEGIN_ISA

namespace {

using namespace winograd;

constexpr int kProducts = kPoints * kPoints;
constexpr int64_t kOut = 64;                            // output channels that are multiplied at once
constexpr int64_t kSkew = 16;                           // keeps the 36 products of a tile out of one cache set
constexpr int64_t kKept = int64_t(16) << 20;            // bytes of transformed weights that are kept for all tasks
constexpr int64_t kCached = int64_t(1600) << 10;        // bytes of one task that the second cache has room for
constexpr int64_t kFewestTiles = 48, kMostTiles = 132;  // of a task; multiples of the rows of a product
using S = Simd<float>;
using V = S::V;
constexpr int64_t kLanesOf = S::kLanes, kPanelWidth = kPanel * kLanesOf;

struct Plan {
  const WinogradFwd& a;
  int64_t depth;  // input channels that are multiplied at once: fewer, where their weights take the cache too
  int64_t in_blocks, out_blocks, tiles_y, tiles_x, tiles, tiles_at_once, runs, groups;
  bool keep_weights;

  explicit Plan(const WinogradFwd& args)
      : a(args),
        out_blocks((a.out_channels + kOut - 1) / kOut * a.phases * a.phases),
        tiles_y((a.out_height + kTile - 1) / kTile),
        tiles_x((a.out_width + kTile - 1) / kTile),
        tiles(a.after.images * tiles_y * tiles_x) {
    const int64_t weights = kProducts * a.in_channels * a.out_channels * a.phases * a.phases * int64_t(sizeof(float));
    const int64_t cached = kCached / (kProducts * (a.in_channels + kOut) * int64_t(sizeof(float))) / 6 * 6;
    keep_weights = weights <= kKept && tiles > kFewestTiles;
    depth = keep_weights ? 128 : 64;
    in_blocks = (a.in_channels + depth - 1) / depth;
    const int64_t most = keep_weights ? max_of(kFewestTiles, min_of(cached, kMostTiles)) : kMostTiles;
    runs = (tiles + most - 1) / most;
    tiles_at_once = ((tiles + runs - 1) / runs + 5) / 6 * 6;
    runs = (tiles + tiles_at_once - 1) / tiles_at_once;
    // Several tasks a thread, for balance; each transforms its tiles again.
    groups = min_of(out_blocks, max_of<int64_t>(1, (2 * a.after.threads + runs - 1) / runs));
  }

  int64_t in_block(int64_t block) const { return min_of(depth, a.in_channels - block * depth); }
  // Output channels of a block, and the phase that they are of.
  int64_t per_phase() const { return out_blocks / (a.phases * a.phases); }
  int phase(int64_t block) const { return int(block / per_phase()); }
  int64_t first_out(int64_t block) const { return block % per_phase() * kOut; }
  int64_t out_block(int64_t block) const { return min_of(kOut, a.out_channels - first_out(block)); }
  // From one product to the next: of tiles of the image or of sums, and of the weights of a pair of blocks.
  int64_t tiles_pitch(int64_t channels) const { return tiles_at_once * channels + kSkew; }
  int64_t weights_pitch() const { return min_of(depth, a.in_channels) * min_of(kOut, a.out_channels) + kSkew; }
  int64_t weights_size() const { return kProducts * weights_pitch(); }
};

// The 9 taps of kLanesOf output channels; `stride` lies between the channels.
FVX_HD void load_taps(const float* w, int64_t stride, V (&taps)[kTaps * kTaps]) {
#if defined(__AVX512F__)
  FVX_UNROLL for (int part = 0; part < 3; ++part) {
    const int first = part < 2 ? 4 * part : 5;
    const float* from = w + first;
    __m512 v0 = load_lanes(from, int(4 * stride)), v1 = load_lanes(from + stride, int(4 * stride)),
           v2 = load_lanes(from + 2 * stride, int(4 * stride)), v3 = load_lanes(from + 3 * stride, int(4 * stride));
    transpose_lanes(v0, v1, v2, v3);
    taps[first] = v0, taps[first + 1] = v1, taps[first + 2] = v2, taps[first + 3] = v3;
  }
#else
  float lanes[kTaps * kTaps][kLanesOf];
  for (int l = 0; l < kLanesOf; ++l) {
    for (int t = 0; t < kTaps * kTaps; ++t) lanes[t][l] = w[l * stride + t];
  }
  FVX_UNROLL for (int t = 0; t < kTaps * kTaps; ++t) taps[t] = S::load(lanes[t]);
#endif
}

// Transformed weights of a pair of blocks: 36 matrices (input channels, output channels), packed for multiply().
void transform_weights(const Plan& plan, int64_t out, int64_t in, float* panel) {
  const WinogradFwd& a = plan.a;
  const int64_t depth = plan.in_block(in), columns = plan.out_block(out), pitch = plan.weights_pitch();
  const float* g_y = a.transform + plan.phase(out) / a.phases * kPoints * kTaps;
  const float* g_x = a.transform + (a.phases + plan.phase(out) % a.phases) * kPoints * kTaps;
  for (int64_t first = 0; first < columns; first += kPanelWidth) {
    const int64_t width = min_of(kPanelWidth, columns - first);
    for (int64_t lane = 0; lane < width; lane += kLanesOf) {
      const float* w = a.w + (plan.first_out(out) + first + lane) * a.w_out + in * plan.depth * a.w_in;
      for (int64_t i = 0; i < depth; ++i) {
        V taps[kTaps * kTaps];
        load_taps(w + i * a.w_in, a.w_out, taps);
        float* to = panel + first * depth + i * width + lane;
        for (int row = 0; row < kPoints; ++row) {
          V q[kTaps];
          FVX_UNROLL for (int t = 0; t < kTaps; ++t) {
            q[t] = g_y[row * kTaps] * taps[t] + g_y[row * kTaps + 1] * taps[kTaps + t] +
                   g_y[row * kTaps + 2] * taps[2 * kTaps + t];
          }
          FVX_UNROLL for (int column = 0; column < kPoints; ++column) {
            const float* g = g_x + column * kTaps;
            S::store(to + (row * kPoints + column) * pitch, g[0] * q[0] + g[1] * q[1] + g[2] * q[2]);
          }
        }
      }
    }
  }
}

// All of them, one pair of blocks after the other.
void transform_all_weights(const Plan& plan, float* panels) {
  parallel_for(plan.a.after.threads, plan.out_blocks * plan.in_blocks, 1, [&](int64_t pair, int64_t) {
    transform_weights(plan, pair / plan.in_blocks, pair % plan.in_blocks, panels + pair * plan.weights_size());
  });
}

class Task {
 public:
  Task(const Plan& plan, int64_t run)
      : plan_(plan),
        a_(plan.a),
        first_(run * plan.tiles_at_once),
        count_(min_of(plan.tiles_at_once, plan.tiles - first_)),
        image_(kProducts * plan.in_blocks * plan.tiles_pitch(plan.depth) * sizeof(float)),
        sums_(kProducts * plan.tiles_pitch(kOut) * sizeof(float)),
        panel_(plan.keep_weights ? 0 : plan.weights_size() * sizeof(float)),
        zeros_(a_.in_channels) {
    if (!image_.as<float>() || !sums_.as<float>() || (!plan.keep_weights && !panel_.as<float>())) {
      throw std::bad_alloc();
    }
    for (int64_t c = 0; c < a_.in_channels; ++c) zeros_.data()[c] = 0;
  }

  // Returns whether all sums were finite.
  bool run(int64_t out_begin, int64_t out_end, const float* kept) {
    for (int64_t t = 0; t < count_; ++t) transform_tile(t);
    V check{};
    for (int64_t out = out_begin; out < out_end; ++out) {
      for (int64_t in = 0; in < plan_.in_blocks; ++in) multiply_blocks(out, in, kept);
      FVX_DISPATCH_KIND(a_.after.act, finish<kKind>(out, check));
    }
    bool finite = true;
    for (int l = 0; l < kLanesOf; ++l) finite = finite && lane(check, l) == 0;
    return finite;
  }

 private:
  static float lane(V v, int l) {
    float lanes[kLanesOf];
    S::store(lanes, v);
    return lanes[l];
  }

  struct Place {
    int64_t image, y, x;  // of the first pixel of a tile, in one phase of the output
  };
  Place place(int64_t t) const {
    const int64_t tile = first_ + t, in_image = tile % (plan_.tiles_y * plan_.tiles_x);
    return {tile / (plan_.tiles_y * plan_.tiles_x), in_image / plan_.tiles_x * kTile, in_image % plan_.tiles_x * kTile};
  }

  float* block_of_image(int64_t in) const {
    return image_.as<float>() + in * kProducts * plan_.tiles_pitch(plan_.depth);
  }

  void transform_tile(int64_t t) {
    const Place at = place(t);
    const float* pixels[kPoints][kPoints];
    for (int i = 0; i < kPoints; ++i) {
      for (int j = 0; j < kPoints; ++j) {
        const int64_t y = at.y + i - a_.pad_y, x = at.x + j - a_.pad_x;
        const bool inside = y >= 0 && y < a_.height && x >= 0 && x < a_.width;
        pixels[i][j] = inside ? a_.x + ((at.image * a_.height + y) * a_.width + x) * a_.in_channels : zeros_.data();
      }
    }
    const float* s = a_.s ? a_.s + at.image * a_.in_channels : nullptr;
    for (int64_t in = 0; in < plan_.in_blocks; ++in) {
      const int64_t depth = plan_.in_block(in), stride = plan_.tiles_pitch(depth);
      float* to = block_of_image(in) + t * depth;
      for (int64_t c = 0; c < depth; c += kLanesOf) {
        const int64_t channel = in * plan_.depth + c;
        const V factor = s ? S::load(s + channel) : S::splat(1);
        V half[kPoints][kPoints];
        FVX_UNROLL for (int j = 0; j < kPoints; ++j) {
          V d[kPoints], column[kPoints];
          FVX_UNROLL for (int i = 0; i < kPoints; ++i) d[i] = S::load(pixels[i][j] + channel) * factor;
          spread(d, column);
          FVX_UNROLL for (int i = 0; i < kPoints; ++i) half[i][j] = column[i];
        }
        FVX_UNROLL for (int i = 0; i < kPoints; ++i) {
          V row[kPoints];
          spread(half[i], row);
          FVX_UNROLL for (int j = 0; j < kPoints; ++j) S::store(to + (i * kPoints + j) * stride + c, row[j]);
        }
      }
    }
  }

  void multiply_blocks(int64_t out, int64_t in, const float* kept) {
    const int64_t depth = plan_.in_block(in), columns = plan_.out_block(out);
    const float* panel = kept ? kept + (out * plan_.in_blocks + in) * plan_.weights_size() : panel_.as<float>();
    if (!kept) transform_weights(plan_, out, in, panel_.as<float>());
    for (int p = 0; p < kProducts; ++p) {
      Product<float> product{};
      product.rows = count_, product.columns = columns, product.depth = depth;
      product.a = block_of_image(in) + p * plan_.tiles_pitch(depth), product.a_row = depth, product.a_k = 1;
      product.b = panel + p * plan_.weights_pitch();
      product.c = sums_.as<float>() + p * plan_.tiles_pitch(kOut), product.c_row = kOut;
      in == 0 ? multiply<Finish::store>(product) : multiply<Finish::add>(product);
    }
  }

  // From sums to pixels of the output, for a block of channels.
  template <BiasActivation kind>
  void finish(int64_t out, V& check) {
    const BiasAct& after = a_.after;
    const auto options = bias_act::Options<float>::of<float>(after);
    const int64_t columns = plan_.out_block(out), first = plan_.first_out(out), phases = a_.phases;
    const int64_t height = a_.out_height * phases, width = a_.out_width * phases;
    const float *scales = static_cast<const float*>(after.scale), *noise = static_cast<const float*>(after.noise);
    alignas(64) float scale[kOut], bias[kOut], pixels[kTile * kTile][kOut];
    for (int64_t c = 0; c < columns; ++c) {
      scale[c] = 1;
      bias[c] = after.b ? static_cast<const float*>(after.b)[first + c] : 0;
    }
    int64_t image = -1;
    for (int64_t t = 0; t < count_; ++t) {
      const Place at = place(t);
      if (scales && at.image != image) {
        image = at.image;
        for (int64_t c = 0; c < columns; ++c) scale[c] = scales[image * a_.out_channels + first + c];
      }
      for (int64_t c = 0; c < columns; c += kLanesOf) check = gather_tile(t, c, pixels, check);
      for (int i = 0; i < kTile && at.y + i < a_.out_height; ++i) {
        for (int j = 0; j < kTile && at.x + j < a_.out_width; ++j) {
          const int64_t y = (at.y + i) * phases + plan_.phase(out) / phases;
          const int64_t x = (at.x + j) * phases + plan_.phase(out) % phases;
          const float shift = noise ? noise[((after.noise_per_image ? at.image : 0) * height + y) * width + x] : 0;
          float* to = a_.y + ((at.image * height + y) * width + x) * a_.out_channels + first;
          const float* from = pixels[i * kTile + j];
          FVX_SIMD
          for (int64_t c = 0; c < columns; ++c) {
            to[c] = options.template result<kind>(from[c] * scale[c] + (shift + bias[c]));
          }
        }
      }
    }
  }

  // Tile t in lanes from channel c of the block on. Adds zeros, or NaN where there is no number, to `check`.
  FVX_HD V gather_tile(int64_t t, int64_t c, float (*pixels)[kOut], V check) const {
    const float* from = sums_.as<float>() + t * kOut + c;
    const int64_t stride = plan_.tiles_pitch(kOut);
    V half[kTile][kPoints];
    FVX_UNROLL for (int j = 0; j < kPoints; ++j) {
      V m[kPoints], column[kTile];
      FVX_UNROLL for (int i = 0; i < kPoints; ++i) m[i] = S::load(from + (i * kPoints + j) * stride);
      gather(m, column);
      FVX_UNROLL for (int i = 0; i < kTile; ++i) half[i][j] = column[i];
    }
    FVX_UNROLL for (int i = 0; i < kTile; ++i) {
      V row[kTile];
      gather(half[i], row);
      FVX_UNROLL for (int j = 0; j < kTile; ++j) {
        S::store(pixels[i * kTile + j] + c, row[j]);
        check += row[j] * 0.0f;
      }
    }
    return check;
  }

  const Plan& plan_;
  const WinogradFwd& a_;
  const int64_t first_, count_;
  const Workspace image_;  // (blocks of input channels, 36, tiles, channels)
  const Workspace sums_;   // (36, tiles, channels) of a block of output channels
  const Workspace panel_;
  const Scratch<float> zeros_;
};

}  // namespace

void winograd_fwd(const WinogradFwd& a) {
  const Plan plan(a);
  const int64_t pairs = plan.out_blocks * plan.in_blocks;
  const Workspace kept(plan.keep_weights ? size_t(pairs * plan.weights_size()) * sizeof(float) : 0);
  if (plan.keep_weights) {
    if (!kept.as<float>()) throw std::bad_alloc();
    transform_all_weights(plan, kept.as<float>());
  }
  const int64_t tasks = plan.runs * plan.groups;
  const Scratch<bool> finite(tasks);
  parallel_for(a.after.threads, tasks, 1, [&](int64_t index, int64_t) {
    const int64_t group = index % plan.groups;
    const int64_t begin = group * plan.out_blocks / plan.groups, end = (group + 1) * plan.out_blocks / plan.groups;
    Task task(plan, index / plan.groups);
    finite.data()[index] = task.run(begin, end, kept.as<float>());
  });
  *a.finite = 1;
  for (int64_t i = 0; i < tasks; ++i) *a.finite = *a.finite && finite.data()[i];
}

FVX_END_ISA
