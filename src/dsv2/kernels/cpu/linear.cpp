// The product of few rows with a weight, for inference. Specification: `torch.nn.functional.linear`.

#include "few.h"

namespace dsv2 {
namespace {

// x (..., I), w (O, I): (..., O).
Tensor linear(const Tensor& x_in, const Tensor& w) {
  const Tensor x = x_in.contiguous();
  auto shape = x.sizes().vec();
  shape.back() = w.size(0);
  Tensor out = at::empty(shape, x.options());
  project({{matrix(x), weight(w), matrix(out)}});
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) { m.def("linear(Tensor x, Tensor w) -> Tensor"); }
TORCH_LIBRARY_IMPL(dsv2, CPU, m) { m.impl("linear", linear); }

}  // namespace dsv2
