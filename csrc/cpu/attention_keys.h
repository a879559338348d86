// Keys and values of a block as operands. Where several tiles read a head's keys, all of the head's are packed once,
// ahead of the tiles; where keys lie side by side, a block is then a place among those. Other blocks are gathered.
#pragma once

#include <new>

#include "attention_products.h"
#include "fastvfx/workspace.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

// Memory of a kernel that must not fail silently.
template <class A>
class Sums {
 public:
  explicit Sums(int64_t n) : block_(size_t(n) * sizeof(A)) {
    if (n && !block_.template as<A>()) throw std::bad_alloc();
  }
  A* at(int64_t i) const { return block_.template as<A>() + i; }

 private:
  Workspace block_;
};

// All keys and values of all heads, the extra ones behind the others.
template <class T, class E>
class PackedKeys {
  using A = acc_t<T>;
  using P = Products<E>;

 public:
  static constexpr int kTurned = 256;  // keys of a turned block

  // `use`: else nothing is packed. Turned blocks are for bf16, whose left operands must lie row by row.
  PackedKeys(const Attention& a, bool use, bool turned_k, bool turned_v)
      : used(use),
        width(padded<E>(a.dim)),
        width_v(padded<E>(a.dim_v)),
        heads_(a.kv_heads),
        n_rows_(n_keys(a) + a.n_extra),
        n_turned_(is_pairs<E> ? round_up(n_keys(a), kTurned) : 0),
        size_k_(n_rows_ * width),
        size_v_(n_rows_ * width_v),
        size_turned_k_(turned_k ? n_turned_ * width : 0),
        size_turned_v_(turned_v ? n_turned_ * width_v : 0),
        room_(use ? a.batch * heads_ * (size_k_ + size_v_ + size_turned_k_ + size_turned_v_) : 0),
        bad_(use ? a.batch * heads_ * (2 * n_rows_ + 2) : 0) {
    if (!use) return;
    constexpr int64_t kRows = kTurned;
    const int64_t parts = (n_rows_ + kRows - 1) / kRows, count = a.batch * heads_;
    for (int64_t i = 0; i < count; ++i) bad_.at(i * (2 * n_rows_ + 2))[0] = bad_.at(i * (2 * n_rows_ + 2))[1] = false;
    parallel_for(a.threads, count * parts, 1, [&](int64_t begin, int64_t end) {
      Scratch<A> row(max_of(a.dim, a.dim_v));
      Scratch<E> pairs(is_pairs<E> ? kTurned * max_of(width, width_v) : 0);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % parts * kRows;
        pack(a, i / parts / heads_, i / parts % heads_, first, min_of(first + kRows, n_rows_), row.data(),
             pairs.data());
      }
    });
  }

  const E* k(int64_t batch, int64_t head) const { return at(batch, head); }
  const E* v(int64_t batch, int64_t head) const { return at(batch, head) + size_k_; }
  // The turned block that begins at key `first`, a multiple of kTurned: rows are channels, kTurned apart.
  const E* turned_k(int64_t batch, int64_t head, int64_t first) const {
    return size_turned_k_ ? at(batch, head) + size_k_ + size_v_ + first * width : nullptr;
  }
  const E* turned_v(int64_t batch, int64_t head, int64_t first) const {
    return size_turned_v_ ? at(batch, head) + size_k_ + size_v_ + size_turned_k_ + first * width_v : nullptr;
  }
  // Which are not finite, or null if all are.
  const bool* bad_k(int64_t batch, int64_t head) const {
    return flags(batch, head)[0] ? flags(batch, head) + 2 : nullptr;
  }
  const bool* bad_v(int64_t batch, int64_t head) const {
    return flags(batch, head)[1] ? flags(batch, head) + 2 + n_rows_ : nullptr;
  }

  const bool used;
  const int64_t width, width_v;

 private:
  E* at(int64_t batch, int64_t head) const {
    return room_.at((batch * heads_ + head) * (size_k_ + size_v_ + size_turned_k_ + size_turned_v_));
  }
  bool* flags(int64_t batch, int64_t head) const { return bad_.at((batch * heads_ + head) * (2 * n_rows_ + 2)); }

  void pack(const Attention& a, int64_t batch, int64_t head, int64_t begin, int64_t end, A* row, E* pairs) const {
    const A* tables = static_cast<const A*>(a.kv_rotary);
    const int64_t n_k = n_keys(a);
    E *const to_k = at(batch, head), *const to_v = to_k + size_k_;
    bool *const any = flags(batch, head), *const bad_k = any + 2, *const bad_v = bad_k + n_rows_;
    for (int64_t j = begin; j < end; ++j) {
      const bool extra = j >= n_k;
      const int64_t token = extra ? j - n_k : j;
      const A* table = tables && !extra ? tables + token * a.dim : nullptr;
      const T* from_k = row_of<T>(extra ? a.extra_k : a.k, batch, token, head);
      const T* from_v = row_of<T>(extra ? a.extra_v : a.v, batch, token, head);
      bad_k[j] = !pack_row(from_k, a.dim, width, to_k + j * width, table, a.rotary_halves, row);
      bad_v[j] = !pack_row(from_v, a.dim_v, width_v, to_v + j * width_v, static_cast<const A*>(nullptr), false, row);
      // Several threads may write here, all of them the same.
      if (bad_k[j]) __atomic_store_n(any, true, __ATOMIC_RELAXED);
      if (bad_v[j]) __atomic_store_n(any + 1, true, __ATOMIC_RELAXED);
    }
    for (int64_t first = begin; first < min_of(end, n_k) && is_pairs<E>; first += kTurned) {
      const int64_t n = min_of(first + kTurned, n_k) - first;
      if (size_turned_k_) {
        P::left_transposed(to_k + first * width, width, n, kTurned, width, pairs,
                           const_cast<E*>(turned_k(batch, head, first)));
      }
      if (size_turned_v_) {
        P::left_transposed(to_v + first * width_v, width_v, n, kTurned, width_v, pairs,
                           const_cast<E*>(turned_v(batch, head, first)));
      }
    }
  }

  const int64_t heads_, n_rows_, n_turned_, size_k_, size_v_, size_turned_k_, size_turned_v_;
  const Sums<E> room_;
  const Sums<bool> bad_;
};

// The keys and values of one block at a time, for one thread.
template <class T, class E>
class BlockKeys {
  using A = acc_t<T>;
  using P = Products<E>;

 public:
  BlockKeys(const Attention& a, const PackedKeys<T, E>& ahead, int capacity)
      : a_(a),
        ahead_(ahead),
        width_(ahead.width),
        width_v_(ahead.width_v),
        bad_(2 * capacity),
        capacity_(capacity),
        rows_(capacity * (width_ + width_v_)),
        turned_(is_pairs<E> ? 2 * capacity * max_of(width_, width_v_) : 0),
        row_(a.dim) {}

  void load(const KeyBlock& block, int64_t batch, int64_t head) {
    block_ = &block, batch_ = batch, head_ = head;
    if (!ahead_.used) return pack();
    const int64_t extra = block.extra ? n_keys(a_) : 0;
    const int64_t first = extra + block.token[0];
    const bool *const k_flags = ahead_.bad_k(batch, head), *const v_flags = ahead_.bad_v(batch, head);
    k = ahead_.k(batch, head), v = ahead_.v(batch, head);
    if (block.run()) {
      k += first * width_, v += first * width_v_;
      bad_k = if_any(k_flags ? k_flags + first : nullptr), bad_v = if_any(v_flags ? v_flags + first : nullptr);
      return;
    }
    E *const to_k = rows_.data(), *const to_v = to_k + capacity_ * width_;
    for (int i = 0; i < block.n; ++i) {
      copy(k + (extra + block.token[i]) * width_, width_, to_k + i * width_);
      copy(v + (extra + block.token[i]) * width_v_, width_v_, to_v + i * width_v_);
    }
    k = to_k, v = to_v;
    bad_k = flags_of(k_flags, extra, bad_.data()), bad_v = flags_of(v_flags, extra, bad_.data() + capacity_);
  }

  // The transposes as left operands, zeros up to `depth` keys.
  Left<E> turned_keys(int64_t depth) const { return turned(k, width_, &PackedKeys<T, E>::turned_k, depth); }
  Left<E> turned_values(int64_t depth) const { return turned(v, width_v_, &PackedKeys<T, E>::turned_v, depth); }

  // (n, dim) and (n, dim_v), padded<E>() apart, and which rows are not finite: null if none is.
  const E *k = nullptr, *v = nullptr;
  const bool *bad_k = nullptr, *bad_v = nullptr;

 private:
  void pack() {
    const KeyBlock& block = *block_;
    const AttentionTensor &from_k = block.extra ? a_.extra_k : a_.k, &from_v = block.extra ? a_.extra_v : a_.v;
    const A* tables = block.extra ? nullptr : static_cast<const A*>(a_.kv_rotary);
    E *const to_k = rows_.data(), *const to_v = to_k + capacity_ * width_;
    bool *const flags_k = bad_.data(), *const flags_v = flags_k + capacity_;
    bad_k = pack_keys<E, T>(block, from_k, batch_, head_, a_.dim, width_, tables, a_.rotary_halves, to_k, row_.data(),
                            flags_k)
                ? flags_k
                : nullptr;
    bad_v =
        pack_keys<E, T>(block, from_v, batch_, head_, a_.dim_v, width_v_, nullptr, false, to_v, row_.data(), flags_v)
            ? flags_v
            : nullptr;
    k = to_k, v = to_v;
  }

  static void copy(const E* from, int64_t n, E* to) {
    for (int64_t c = 0; c < n; c += kVectorBytes / int(sizeof(E))) __builtin_memcpy(to + c, from + c, kVectorBytes);
  }

  const bool* flags_of(const bool* of_head, int64_t extra, bool* room) const {
    if (!of_head) return nullptr;
    for (int i = 0; i < block_->n; ++i) room[i] = of_head[extra + block_->token[i]];
    return if_any(room);
  }

  // Keys of other blocks must not matter, not even to the last bit.
  const bool* if_any(const bool* flags) const {
    for (int i = 0; flags && i < block_->n; ++i) {
      if (flags[i]) return flags;
    }
    return nullptr;
  }

  Left<E> turned(const E* rows, int64_t width, const E* (PackedKeys<T, E>::*ready)(int64_t, int64_t, int64_t) const,
                 int64_t depth) const {
    constexpr int kTurned = PackedKeys<T, E>::kTurned;
    const int32_t first = block_->token[0];
    if (is_pairs<E> && ahead_.used && !block_->extra && block_->run() && first % kTurned + depth <= kTurned) {
      const E* const found = (ahead_.*ready)(batch_, head_, first / kTurned * kTurned);
      if (found) return {found + first % kTurned, kTurned, 1};
    }
    E* const room = turned_.data();
    return P::left_transposed(rows, width, block_->n, depth, width, room, room + capacity_ * width);
  }

  const Attention& a_;
  const PackedKeys<T, E>& ahead_;
  const int64_t width_, width_v_;
  Scratch<bool> bad_;
  const int64_t capacity_;
  Scratch<E> rows_, turned_;
  Scratch<A> row_;
  const KeyBlock* block_ = nullptr;
  int64_t batch_ = 0, head_ = 0;
};

}  // namespace

FVX_END_ISA
