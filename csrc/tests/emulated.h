// What tests of emulated CUDA kernels share: arrays of any storage type that end where they end, and every order in
// which threads may run.
#pragma once

#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "check.h"
#include "emulator.h"
#include "fastvfx/dtype.h"

namespace fastvfx {

inline constexpr DType every_dtype[] = {DType::f64, DType::f32, DType::f16, DType::bf16};

inline const char* name_of(DType dtype) {
  return dtype == DType::f64 ? "f64" : dtype == DType::f32 ? "f32" : dtype == DType::f16 ? "f16" : "bf16";
}
inline size_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
inline DType accumulation_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
// Half the distance between neighbours, relative.
inline double epsilon_of(DType dtype) {
  return dtype == DType::f64 ? 1.2e-16 : dtype == DType::f32 ? 6e-8 : dtype == DType::f16 ? 4.9e-4 : 3.9e-3;
}

// Values of a storage type, NaN until they are set. The memory is exactly that large, so that the sanitizers see every
// access behind its end or before its beginning.
class Array {
 public:
  Array(DType dtype, int64_t n) : dtype_(dtype), n_(n), bytes_(new char[size_t(n) * bytes_of(dtype)]) {
    for (int64_t i = 0; i < n; ++i) set(i, std::numeric_limits<double>::quiet_NaN());
  }

  template <class F>
  Array& fill(F&& value) {
    for (int64_t i = 0; i < n_; ++i) set(i, value());
    return *this;
  }

  int64_t size() const { return n_; }
  DType dtype() const { return dtype_; }
  void* data() const { return bytes_.get(); }

  double operator[](int64_t i) const {
    double x = 0;
    FVX_DISPATCH_STORAGE(dtype_, T, {
      T stored;
      std::memcpy(&stored, bytes_.get() + i * int64_t(sizeof(T)), sizeof(T));
      x = double(FVX_ISA::to_acc(stored));
    });
    return x;
  }
  void set(int64_t i, double x) {
    FVX_DISPATCH_STORAGE(dtype_, T, {
      const T stored = FVX_ISA::from_acc<T>(acc_t<T>(x));
      std::memcpy(bytes_.get() + i * int64_t(sizeof(T)), &stored, sizeof(T));
    });
  }

 private:
  DType dtype_;
  int64_t n_;
  std::unique_ptr<char[]> bytes_;
};

// |got - want| <= tolerance max(|want|, scale), where the tolerance counts half-distances of the type; NaN equals NaN.
inline void near(const std::string& what, const Array& got, const Array& want, double tolerance, double scale) {
  int64_t bad = 0, first = -1;
  for (int64_t i = 0; i < want.size(); ++i) {
    const double g = got[i], w = want[i];
    const double bound = tolerance * epsilon_of(want.dtype()) * std::fmax(std::fabs(w), scale);
    if (std::isnan(w) ? std::isnan(g) : g == w || std::fabs(g - w) <= bound) continue;
    if (++bad == 1) first = i;
  }
  if (bad == 0) return;
  std::printf("%s: %lld of %lld differ, the first at %lld: got %.9g, want %.9g\n", what.c_str(), (long long)(bad),
              (long long)(want.size()), (long long)(first), got[first], want[first]);
  ++failures;
}

// Runs `test` in every order of threads and with one and several blocks at a time: what is right once and wrong another
// time lacks a barrier or an atomic.
template <class F>
int in_every_order(const F& test) {
  using cuda_emulator::Order;
  for (Order order : {Order::first_to_last, Order::last_to_first, Order::shuffled}) {
    if (cuda_emulator::finds_races() && order != Order::shuffled) continue;  // a race is found in any order
    cuda_emulator::set_execution({order, 7, order == Order::first_to_last ? 1 : 3});
    try {
      test();
    } catch (const std::exception& error) {
      std::printf("order %d: %s\n", int(order), error.what());
      ++failures;
    }
  }
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace fastvfx
