// What every op shares: rows of floats, matrix products, threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace dsv2 {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using Vec = at::vec::Vectorized<float>;

// A row-major matrix within a buffer; rows are `stride` floats apart.
struct Matrix {
  float* data;
  int64_t rows, columns, stride;
  float* row(int64_t i) const { return data + i * stride; }
  Matrix part(int64_t first, int64_t count) const { return {data + first * stride, count, columns, stride}; }
};

inline float* pointer(const Tensor& tensor) { return tensor.data_ptr<float>(); }

// The leading dimensions of a contiguous tensor as rows.
inline Matrix matrix(const Tensor& tensor) {
  const int64_t columns = tensor.size(-1);
  return {pointer(tensor), columns ? tensor.numel() / columns : 0, columns, columns};
}

// a b, or with `add` c + a b; a transposed factor is marked. Written in terms of torch's own product.
inline void multiply(const Matrix& a, bool a_transposed, const Matrix& b, bool b_transposed, const Matrix& c,
                     bool add = false) {
  if (c.rows == 0 || c.columns == 0) return;
  auto view = [](const Matrix& m, bool transposed) {
    return transposed ? at::from_blob(m.data, {m.columns, m.rows}, {1, m.stride}, at::kFloat)
                      : at::from_blob(m.data, {m.rows, m.columns}, {m.stride, 1}, at::kFloat);
  };
  Tensor out = view(c, false);
  if (add) {
    at::addmm_out(out, out, view(a, a_transposed), view(b, b_transposed));
  } else {
    at::mm_out(out, view(a, a_transposed), view(b, b_transposed));
  }
}

inline float sum(Vec v) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, v);
}

// Apply `body(vector of column i.., i, count)` to the columns of a row, `count` of them valid.
template <typename Body>
inline void columns(int64_t width, const Body& body) {
  int64_t i = 0;
  for (; i + Vec::size() <= width; i += Vec::size()) body(i, Vec::size());
  if (i < width) body(i, width - i);
}

inline Vec load(const float* row, int64_t i, int64_t count) { return Vec::loadu(row + i, count); }

inline void store(float* row, int64_t i, int64_t count, Vec value) { value.store(row + i, count); }

inline float dot(const float* a, const float* b, int64_t width) {
  Vec total(0);
  columns(width, [&](int64_t i, int64_t count) { total = total + load(a, i, count) * load(b, i, count); });
  return sum(total);
}

// The largest of `count` floats.
inline float highest(const float* row, int64_t count) {
  Vec many(-std::numeric_limits<float>::infinity());
  float top = -std::numeric_limits<float>::infinity();
  int64_t j = 0;
  for (; j + Vec::size() <= count; j += Vec::size()) many = at::vec::maximum(many, Vec::loadu(row + j));
  for (; j < count; ++j) top = std::max(top, row[j]);
  return std::max(top, at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, many));
}

// Replace every x of `count` floats by exp(scale (x - top)), and return their sum.
inline float exponentiate(float* row, int64_t count, float top, float scale) {
  Vec total(0);
  float rest = 0;
  columns(count, [&](int64_t j, int64_t c) {
    const Vec e = ((load(row, j, c) - Vec(top)) * Vec(scale)).exp();
    store(row, j, c, e);
    if (c == Vec::size()) {
      total = total + e;
    } else {
      for (int64_t i = j; i < count; ++i) rest += row[i];
    }
  });
  return sum(total) + rest;
}

// Run `body(first, last)` over rows, in pieces of about 16K floats.
template <typename Body>
inline void over_rows(int64_t rows, int64_t width, const Body& body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)), body);
}

// Call an op through the dispatcher, so that tracing sees it.
template <typename Function, typename... Arguments>
inline auto call(const char* name, Arguments&&... arguments) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
  return op.call(std::forward<Arguments>(arguments)...);
}

}  // namespace dsv2
