// How bias_act walks over a tensor: in tiles, each a task, and through a tile in segments of consecutive elements with
// what multiplies and is added to them. The two orders of elements differ here and nowhere else.
#pragma once

#include "fastvfx/bias_act.h"
#include "scratch.h"

FVX_BEGIN_ISA

namespace bias_act {

constexpr int kBlock = 256;  // elements of a segment at most: stages hand them on in L1
constexpr int64_t kTileElements = 1 << 15;
constexpr int64_t kTilePixels = 2048;  // of a tile that must have all channels: with less, memory is read in snatches

// `n` elements from `at` on, of which the first is of this channel and pixel.
struct Segment {
  int64_t at, channel, pixel;
  int n;
};

struct Tile {
  int64_t index, image, c0, c1, p0, p1;
};

class Tiles {
 public:
  // `all_channels`: a tile has all channels of its pixels, for sums over them.
  Tiles(const BiasAct& a, bool all_channels) : a_(a) {
    const int64_t most = max_of<int64_t>(1, kTileElements / max_of<int64_t>(1, a.channels));
    if (a.interleaved || all_channels) {
      channels_ = a.channels;
      pixels_ = a.interleaved ? most : kTilePixels;
      pixels_ = min_of(pixels_, a.pixels);
    } else {
      pixels_ = min_of(kTileElements, a.pixels);
      channels_ = min_of(a.channels, kTileElements / max_of<int64_t>(1, pixels_));
    }
    across_ = pixels_ ? (a.pixels + pixels_ - 1) / pixels_ : 0;
    down_ = channels_ ? (a.channels + channels_ - 1) / channels_ : 0;
  }

  int64_t count() const { return a_.images * down_ * across_; }
  int64_t across() const { return across_; }  // tiles beside each other that hold pixels of one image and channel
  int64_t most_channels() const { return channels_; }
  int64_t most_pixels() const { return pixels_; }

  Tile operator[](int64_t i) const {
    const int64_t image = i / (down_ * across_), c0 = i / across_ % down_ * channels_, p0 = i % across_ * pixels_;
    return {i, image, c0, min_of(c0 + channels_, a_.channels), p0, min_of(p0 + pixels_, a_.pixels)};
  }

  // Of an interleaved tensor: pixels of a segment, 1 if a pixel alone is a segment or more; and their elements.
  int64_t pixels_at_once() const {
    const int64_t fit = kBlock / a_.channels;
    return fit <= 1 ? 1 : fit >= 16 ? fit / 16 * 16 : fit;
  }
  int64_t pattern() const { return pixels_at_once() * a_.channels; }

 private:
  const BiasAct a_;
  int64_t channels_, pixels_, across_, down_;
};

// body(segment) for all of a tile: a planar one channel by channel, an interleaved one by several pixels or pieces of
// one.
template <class Body>
FVX_HD void for_segments(const BiasAct& a, const Tiles& tiles, const Tile& tile, const Body& body) {
  const int64_t C = a.channels, P = a.pixels;
  if (!a.interleaved) {
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      for (int64_t p = tile.p0; p < tile.p1; p += kBlock) {
        body(Segment{(tile.image * C + c) * P + p, c, p, int(min_of<int64_t>(kBlock, tile.p1 - p))});
      }
    }
    return;
  }
  const int64_t at_once = tiles.pixels_at_once();
  for (int64_t p = tile.p0; p < tile.p1; p += at_once) {
    const int64_t size = min_of(at_once, tile.p1 - p) * C;
    for (int64_t i = 0; i < size; i += kBlock) {
      body(Segment{(tile.image * P + p) * C + i, i, p, int(min_of<int64_t>(kBlock, size - i))});
    }
  }
}

// Coefficients of a segment: the same for all of its elements, or one for each.
template <class A>
struct Same {
  A value;
  FVX_HD A operator[](int) const { return value; }
};
template <class A>
struct Each {
  const A* values;
  FVX_HD A operator[](int i) const { return values[i]; }
};
template <class A>
struct SameAndEach {
  A value;
  const A* values;
  FVX_HD A operator[](int i) const { return value + values[i]; }
};

// scale and offset = noise + b of the elements of a tile's segments. What is null is 1 in a product, 0 in a sum.
template <class A>
class Coefficients {
 public:
  Coefficients(const BiasAct& a, const Tiles& tiles, const Tile& tile, const void* scale, const void* noise,
               const void* b)
      : interleaved_(a.interleaved),
        channels_(a.channels),
        scale_(scale ? static_cast<const A*>(scale) + tile.image * a.channels : nullptr),
        noise_(noise ? static_cast<const A*>(noise) + (a.noise_per_image ? tile.image * a.pixels : 0) : nullptr),
        b_(static_cast<const A*>(b)),
        pattern_(a.interleaved ? 2 * tiles.pattern() : 0),
        biases_(pattern_.data() + (a.interleaved ? tiles.pattern() : 0)) {
    if (!interleaved_) return;
    for (int64_t i = 0, c = 0; i < tiles.pattern(); ++i, c = c + 1 == channels_ ? 0 : c + 1) {
      pattern_.data()[i] = scale_ ? scale_[c] : A(1);
      biases_[i] = b_ ? b_[c] : A(0);
    }
  }

  // f(scales) or f(scales, offsets), to be indexed by the elements of the segment.
  template <class F>
  FVX_HD void scale(const Segment& s, const F& f) const {
    if (interleaved_) {
      f(Each<A>{pattern_.data() + s.channel});
    } else {
      f(Same<A>{scale_ ? scale_[s.channel] : A(1)});
    }
  }
  template <class F>
  FVX_HD void scale_and_offset(const Segment& s, const F& f) const {
    if (interleaved_) {
      const Each<A> scales{pattern_.data() + s.channel};
      if (!noise_) return f(scales, Each<A>{biases_ + s.channel});
      A offsets[kBlock];
      const int width = int(min_of<int64_t>(channels_, s.n));
      for (int r = 0; r * width < s.n; ++r) {
        FVX_SIMD
        for (int i = 0; i < width; ++i) offsets[r * width + i] = biases_[s.channel + i] + noise_[s.pixel + r];
      }
      f(scales, Each<A>{offsets});
    } else {
      const Same<A> scale{scale_ ? scale_[s.channel] : A(1)};
      const A b = b_ ? b_[s.channel] : A(0);
      if (!noise_) return f(scale, Same<A>{b});
      f(scale, SameAndEach<A>{b, noise_ + s.pixel});
    }
  }

 private:
  const bool interleaved_;
  const int64_t channels_;
  const A* const scale_;
  const A* const noise_;
  const A* const b_;
  const Scratch<A> pattern_;  // interleaved: scales, then biases, of all elements of a segment
  A* const biases_;
};

// Sums of a gradient over pixels, images and channels. A tile adds up its own, in an order that does not depend on the
// threads; finish() adds up the tiles.
template <class A>
class Sums {
 public:
  // Which of them are wanted. g_scale (images, channels), g_noise (images, pixels), g_b (channels).
  Sums(const BiasAct& a, const Tiles& tiles, void* g_scale, void* g_noise, void* g_b)
      : a_(a),
        tiles_(tiles),
        g_scale_(static_cast<A*>(g_scale)),
        g_noise_(static_cast<A*>(g_noise)),
        g_b_(static_cast<A*>(g_b)),
        size_(tiles.count() * tiles.most_channels()),
        of_z_(g_b ? size_ : 0),
        of_x_(g_scale ? size_ : 0) {}

  // The sums of one tile, in the memory of one thread.
  class OfTile {
   public:
    OfTile(const Sums& all, const Tile& tile)
        : all_(all),
          tile_(tile),
          width_(all.a_.interleaved ? all.tiles_.pattern() : 0),
          lanes_(2 * width_),
          noise_(all.g_noise_ && !all.a_.interleaved ? tile.p1 - tile.p0 : 0) {
      for (int64_t i = 0; i < 2 * width_; ++i) lanes_.data()[i] = A(0);
      if (all.g_noise_ && !all.a_.interleaved) {
        for (int64_t i = 0; i < tile.p1 - tile.p0; ++i) noise_.data()[i] = A(0);
      }
    }

    // g_z of a segment, and what it is multiplied by in the sum for the scale.
    void add(const Segment& s, const A* g_z, const A* x) {
      if (all_.a_.interleaved) {
        add_interleaved(s, g_z, x);
      } else {
        add_planar(s, g_z, x);
      }
    }

    ~OfTile() {
      if (all_.a_.interleaved) {
        const int64_t C = all_.a_.channels;
        for (int64_t c = 0; c < C; ++c) {
          double z = 0, x = 0;
          for (int64_t i = c; i < width_; i += C) {
            z += double(lanes_.data()[i]);
            x += double(lanes_.data()[width_ + i]);
          }
          if (all_.g_b_) all_.of_z_.data()[tile_.index * C + c] = z;
          if (all_.g_scale_) all_.of_x_.data()[tile_.index * C + c] = x;
        }
      } else if (all_.g_noise_) {
        A* to = all_.g_noise_ + tile_.image * all_.a_.pixels + tile_.p0;
        for (int64_t i = 0; i < tile_.p1 - tile_.p0; ++i) to[i] = noise_.data()[i];
      }
    }

   private:
    void add_planar(const Segment& s, const A* g_z, const A* x) {
      const int64_t at = tile_.index * all_.tiles_.most_channels() + s.channel - tile_.c0;
      const bool first = s.pixel == tile_.p0;
      if (all_.g_b_) {
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < s.n; ++i) sum += g_z[i];
        all_.of_z_.data()[at] = first ? double(sum) : all_.of_z_.data()[at] + double(sum);
      }
      if (all_.g_scale_) {
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < s.n; ++i) sum += g_z[i] * x[i];
        all_.of_x_.data()[at] = first ? double(sum) : all_.of_x_.data()[at] + double(sum);
      }
      if (all_.g_noise_) {
        A* noise = noise_.data() + (s.pixel - tile_.p0);
        FVX_SIMD
        for (int i = 0; i < s.n; ++i) noise[i] += g_z[i];
      }
    }

    void add_interleaved(const Segment& s, const A* g_z, const A* x) {
      if (all_.g_b_) {
        A* lanes = lanes_.data() + s.channel;
        FVX_SIMD
        for (int i = 0; i < s.n; ++i) lanes[i] += g_z[i];
      }
      if (all_.g_scale_) {
        A* lanes = lanes_.data() + width_ + s.channel;
        FVX_SIMD
        for (int i = 0; i < s.n; ++i) lanes[i] += g_z[i] * x[i];
      }
      if (all_.g_noise_) {
        A* to = all_.g_noise_ + tile_.image * all_.a_.pixels + s.pixel;
        const int width = int(min_of<int64_t>(all_.a_.channels, s.n));
        for (int r = 0; r * width < s.n; ++r) {
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int i = 0; i < width; ++i) sum += g_z[r * width + i];
          to[r] = s.channel == 0 ? sum : to[r] + sum;
        }
      }
    }

    const Sums& all_;
    const Tile tile_;
    const int64_t width_;
    const Scratch<A> lanes_, noise_;
  };

  // After all tiles.
  void finish() const {
    const int64_t C = a_.channels;
    const auto total = [&](const double* sums, int64_t image, int64_t c) {
      // Tiles of an image: `across` beside each other, rows of them of most_channels() channels.
      const int64_t row = c / tiles_.most_channels(), per_image = tiles_.count() / a_.images;
      double sum = 0;
      for (int64_t i = 0; i < tiles_.across(); ++i) {
        const int64_t tile = image * per_image + row * tiles_.across() + i;
        sum += sums[tile * tiles_.most_channels() + c % tiles_.most_channels()];
      }
      return sum;
    };
    for (int64_t c = 0; c < C; ++c) {
      double g_b = 0;
      for (int64_t n = 0; n < a_.images; ++n) {
        if (g_b_) g_b += total(of_z_.data(), n, c);
        if (g_scale_) g_scale_[n * C + c] = A(total(of_x_.data(), n, c));
      }
      if (g_b_) g_b_[c] = A(g_b);
    }
  }

 private:
  const BiasAct a_;
  const Tiles& tiles_;
  A* const g_scale_;
  A* const g_noise_;
  A* const g_b_;
  const int64_t size_;
  const Scratch<double> of_z_, of_x_;
};

}  // namespace bias_act

FVX_END_ISA
