// Matrix products with few rows on the left, on the calling thread and without torch's costs per call. What a row comes
// to does not depend on the other rows, since its sums are always added in the same order.
#pragma once

#include "common.h"

namespace dsv2 {

constexpr int64_t GRAIN = 1 << 18;               // multiplications below which another thread costs more than it saves
constexpr int64_t FEW = 16;                      // rows of an expert up to which `times` is faster than torch's product
constexpr int64_t DEPTH = 128;                   // columns transposed at a time, so that they stay in the L1 cache
constexpr int TALL = Vec::size() == 16 ? 8 : 4;  // rows whose sums fit in the registers, two of each

// How far ahead of a row to ask for memory, in floats: processors foresee few of so many streams, and weights that are not
// in a cache are read several times as fast so.
inline int64_t ahead(const Matrix& m) { return std::max<int64_t>(Vec::size(), 4096 / m.stride) * m.stride; }

inline void prefetch(const float* address) { __builtin_prefetch(address, 0, 2); }

// Write columns first .. first + count - 1 of up to a vector of rows as rows, padded with zeros.
inline void transpose(const Matrix& from, int64_t first, int64_t count, float* to) {
  constexpr int64_t size = Vec::size();
  const int64_t distance = ahead(from);
  int64_t i = 0;
  if (from.rows == size) {
    for (; i + size <= count; i += size) {
      for (int64_t n = 0; n < size; ++n) prefetch(from.row(n) + first + i + distance);
      at::vec::transpose_mxn<float, size, size>(from.data + first + i, from.stride, to + i * size, size);
    }
  }
  for (; i < count; ++i) {
    for (int64_t n = 0; n < size; ++n) to[i * size + n] = n < from.rows ? from.row(n)[first + i] : 0.0f;
  }
}

// Call `body(number of rows as a constant, first row)` until all rows are covered, many at a time first.
template <int tall, typename Body>
inline void in_tiles(int64_t rows, const Body& body, int64_t first = 0) {
  for (; first + tall <= rows; first += tall) body(std::integral_constant<int, tall>(), first);
  if constexpr (tall > 1) in_tiles<tall / 2>(rows, body, first);
}

// c = a b^T, or with `add` c + a b^T: a (n, I), b (O, I), c (n, O).
inline void times_transposed(const Matrix& a, const Matrix& b, const Matrix& c, bool add = false) {
  alignas(64) float across[DEPTH * Vec::size()];
  for (int64_t j = 0; j < b.rows; j += Vec::size()) {
    const int64_t count = std::min<int64_t>(Vec::size(), b.rows - j);
    for (int64_t k = 0; k < b.columns; k += DEPTH) {
      const int64_t depth = std::min(DEPTH, b.columns - k);
      transpose(b.part(j, count), k, depth, across);
      in_tiles<TALL>(a.rows, [&](auto tall, int64_t i) {
        Vec even[tall.value], odd[tall.value];
        for (int r = 0; r < tall; ++r) {
          even[r] = add || k ? load(c.row(i + r), j, count) : Vec(0);
          odd[r] = Vec(0);
        }
        int64_t d = 0;
        for (; d + 2 <= depth; d += 2) {
          const Vec first = Vec::loadu(across + d * Vec::size()), second = Vec::loadu(across + (d + 1) * Vec::size());
          for (int r = 0; r < tall; ++r) {
            const float* row = a.row(i + r) + k + d;
            even[r] = at::vec::fmadd(Vec(row[0]), first, even[r]);
            odd[r] = at::vec::fmadd(Vec(row[1]), second, odd[r]);
          }
        }
        for (int r = 0; r < tall; ++r) {
          if (d < depth) even[r] = at::vec::fmadd(Vec(a.row(i + r)[k + d]), Vec::loadu(across + d * Vec::size()), even[r]);
          store(c.row(i + r), j, count, even[r] + odd[r]);
        }
      });
    }
  }
}

// c = a b: a (n, I), b (I, O), c (n, O).
inline void times(const Matrix& a, const Matrix& b, const Matrix& c) {
  const int64_t distance = ahead(b);
  in_tiles<4>(a.rows, [&](auto tall, int64_t i) {
    constexpr int wide = 16 / std::max(tall.value, 2);  // vectors of columns
    int64_t j = 0;
    for (; j + wide * Vec::size() <= b.columns; j += wide * Vec::size()) {
      Vec sums[tall.value][wide];
      for (int r = 0; r < tall; ++r) std::fill_n(sums[r], wide, Vec(0));
      for (int64_t k = 0; k < b.rows; ++k) {
        const float* row = b.row(k) + j;
        for (int q = 0; q < wide; ++q) {
          prefetch(row + q * Vec::size() + distance);
          const Vec of_b = Vec::loadu(row + q * Vec::size());
          for (int r = 0; r < tall; ++r) sums[r][q] = at::vec::fmadd(Vec(a.row(i + r)[k]), of_b, sums[r][q]);
        }
      }
      for (int r = 0; r < tall; ++r) {
        for (int q = 0; q < wide; ++q) sums[r][q].store(c.row(i + r) + j + q * Vec::size());
      }
    }
    columns(b.columns - j, [&](int64_t from, int64_t count) {
      Vec sums[tall.value];
      std::fill_n(sums, tall.value, Vec(0));
      for (int64_t k = 0; k < b.rows; ++k) {
        const Vec of_b = load(b.row(k), j + from, count);
        for (int r = 0; r < tall; ++r) sums[r] = at::vec::fmadd(Vec(a.row(i + r)[k]), of_b, sums[r]);
      }
      for (int r = 0; r < tall; ++r) store(c.row(i + r), j + from, count, sums[r]);
    });
  });
}

// A matrix whose rows may be apart.
inline Matrix weight(const Tensor& w) {
  TORCH_CHECK(w.stride(-1) == 1, "weights: must have rows that are contiguous");
  return {pointer(w), w.size(0), w.size(1), w.stride(0)};
}

// out = a w^T like `times_transposed`, which is the faster one for many rows a of few columns.
inline void dots(const Matrix& a, const Matrix& w, const Matrix& out) {
  constexpr int side = Vec::size() == 16 ? 4 : 2;  // rows of a whose sums fit in the registers
  const int64_t distance = ahead(w);
  in_tiles<4>(w.rows, [&](auto wide, int64_t j) {
    in_tiles<side>(a.rows, [&](auto tall, int64_t i) {
      Vec sums[tall.value][wide.value];
      for (int r = 0; r < tall; ++r) {
        for (int q = 0; q < wide; ++q) sums[r][q] = Vec(0);
      }
      int64_t k = 0;
      for (; k + Vec::size() <= a.columns; k += Vec::size()) {
        Vec rows[tall.value];
        for (int r = 0; r < tall; ++r) rows[r] = Vec::loadu(a.row(i + r) + k);
        for (int q = 0; q < wide; ++q) {
          prefetch(w.row(j + q) + k + distance);
          const Vec of_w = Vec::loadu(w.row(j + q) + k);
          for (int r = 0; r < tall; ++r) sums[r][q] = at::vec::fmadd(rows[r], of_w, sums[r][q]);
        }
      }
      for (; k < a.columns; k += Vec::size()) {
        for (int q = 0; q < wide; ++q) {
          const Vec of_w = load(w.row(j + q), k, a.columns - k);
          for (int r = 0; r < tall; ++r) sums[r][q] = at::vec::fmadd(load(a.row(i + r), k, a.columns - k), of_w, sums[r][q]);
        }
      }
      for (int r = 0; r < tall; ++r) {
        for (int q = 0; q < wide; ++q) out.row(i + r)[j + q] = sum(sums[r][q]);
      }
    });
  });
}

// out (n, O) = a (n, I) w (O, I)^T.
struct Product {
  Matrix a, w, out;
};

// Compute several products; their outputs are shared out to the threads.
inline void project(std::initializer_list<Product> products) {
  int64_t outputs = 0, work = 0;
  for (const Product& p : products) {
    outputs += p.w.rows;
    work += p.w.rows * p.w.columns * p.a.rows;
  }
  if (work == 0) return;
  at::parallel_for(0, outputs, std::max<int64_t>(1, outputs * GRAIN / work), [&](int64_t first, int64_t last) {
    int64_t begin = 0;
    for (const Product& p : products) {
      const int64_t from = std::max(first - begin, int64_t{0}), to = std::min(last - begin, p.w.rows);
      if (from < to) dots(p.a, p.w.part(from, to - from), {p.out.data + from, p.out.rows, to - from, p.out.stride});
      begin += p.w.rows;
    }
  });
}

}  // namespace dsv2
