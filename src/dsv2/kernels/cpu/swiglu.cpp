// SwiGLU's elementwise part: silu(gate) * up.

#include "swiglu.h"

namespace dsv2 {
namespace {

// gate_up (..., 2W), gate before up: (..., W).
Tensor swiglu(const Tensor& gate_up_in) {
  const Tensor gate_up = gate_up_in.contiguous();
  auto sizes = gate_up.sizes().vec();
  sizes.back() /= 2;
  Tensor out = at::empty(sizes, gate_up.options());
  const Matrix from = matrix(gate_up), to{pointer(out), from.rows, from.columns / 2, from.columns / 2};
  over_rows(from.rows, from.columns, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) swiglu_row(from.row(n), to.columns, 1.0f, to.row(n));
  });
  return out;
}

Tensor swiglu_backward(const Tensor& grad_in, const Tensor& gate_up_in) {
  const Tensor grad = grad_in.contiguous(), gate_up = gate_up_in.contiguous();
  Tensor out = at::empty_like(gate_up);
  const Matrix from = matrix(gate_up), to = matrix(out);
  const int64_t width = from.columns / 2;
  over_rows(from.rows, from.columns, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      swiglu_row_backward(pointer(grad) + n * width, from.row(n), width, 1.0f, to.row(n));
    }
  });
  return out;
}

struct SwiGLU : torch::autograd::Function<SwiGLU> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({gate_up});
    return call<decltype(swiglu)>("dsv2::swiglu", gate_up);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {call<decltype(swiglu_backward)>("dsv2::swiglu_backward", grads[0], saved[0])};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def("swiglu(Tensor gate_up) -> Tensor");
  m.def("swiglu_backward(Tensor grad, Tensor gate_up) -> Tensor");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) {
  m.impl("swiglu", swiglu);
  m.impl("swiglu_backward", swiglu_backward);
}
TORCH_LIBRARY_IMPL(dsv2, Autograd, m) {
  m.impl("swiglu", [](const Tensor& gate_up) { return SwiGLU::apply(gate_up); });
}

}  // namespace dsv2
