// RMSNorm, alone and after an addition to the residual stream.

#include "common.h"

namespace dsv2 {
namespace {

// y = total / rms(total) * w with total = x + delta, and scale = 1 / rms. x, delta, y (..., d), w (d,), scale (...).
void normalise(const Tensor& x, const Tensor& delta, const Tensor& w, float eps, Tensor& total, Tensor& y,
               Tensor& scale) {
  const Matrix from = matrix(x), to = matrix(total), out = matrix(y);
  const float *added = delta.defined() ? pointer(delta) : nullptr, *weight = pointer(w);
  float* scales = pointer(scale);
  const int64_t width = from.columns;
  over_rows(from.rows, width, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      float* row = to.row(n);
      if (added) {
        columns(width, [&](int64_t i, int64_t c) {
          store(row, i, c, load(from.row(n), i, c) + load(added + n * width, i, c));
        });
      }
      const float s = 1.0f / std::sqrt(dot(row, row, width) / width + eps);
      scales[n] = s;
      columns(width, [&](int64_t i, int64_t c) {
        store(out.row(n), i, c, load(row, i, c) * Vec(s) * load(weight, i, c));
      });
    }
  });
}

Tensor one_per_row(const Tensor& x) { return at::empty(x.sizes().slice(0, x.dim() - 1), x.options()); }

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x_in, const Tensor& w, double eps) {
  Tensor x = x_in.contiguous(), y = at::empty_like(x), scale = one_per_row(x);
  normalise(x, {}, w.contiguous(), eps, x, y, scale);
  return {y, scale};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x_in, const Tensor& delta, const Tensor& w, double eps) {
  const Tensor x = x_in.contiguous();
  Tensor total = at::empty_like(x), y = at::empty_like(x), scale = one_per_row(x);
  normalise(x, delta.contiguous(), w.contiguous(), eps, total, y, scale);
  return {total, y, scale};
}

// The gradients of total, from those of y and (unless it is undefined) of total, and of w.
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y_in, const std::optional<Tensor>& grad_total_in,
                                             const Tensor& total_in, const Tensor& w_in, const Tensor& scale) {
  const Tensor grad_y = grad_y_in.contiguous(), total = total_in.contiguous(), w = w_in.contiguous();
  const Tensor grad_total = grad_total_in ? grad_total_in->contiguous() : Tensor();
  Tensor grad = at::empty_like(total);
  const Matrix x = matrix(total), dy = matrix(grad_y), dx = matrix(grad);
  const float *passed = grad_total_in ? pointer(grad_total) : nullptr, *weight = pointer(w), *scales = pointer(scale);
  const int64_t width = x.columns, pieces = at::get_num_threads(), size = (x.rows + pieces - 1) / pieces;
  Tensor parts = at::zeros({pieces, width}, total.options());  // of grad_w: fixed pieces, so that sums are repeatable
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      float* grad_w = pointer(parts) + piece * width;
      for (int64_t n = piece * size; n < std::min(x.rows, (piece + 1) * size); ++n) {
        const float s = scales[n];
        Vec product(0);
        columns(width, [&](int64_t i, int64_t c) {
          const Vec xs = load(x.row(n), i, c), g = load(dy.row(n), i, c);
          product = product + g * load(weight, i, c) * xs;
          store(grad_w, i, c, load(grad_w, i, c) + g * xs * Vec(s));
        });
        const Vec along(sum(product) * s * s * s / width);
        columns(width, [&](int64_t i, int64_t c) {
          Vec d = load(dy.row(n), i, c) * load(weight, i, c) * Vec(s) - load(x.row(n), i, c) * along;
          if (passed) d = d + load(passed + n * width, i, c);
          store(dx.row(n), i, c, d);
        });
      }
    }
  });
  return {grad, parts.sum(0)};
}

struct RMSNorm : torch::autograd::Function<RMSNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, scale] = call<decltype(rms_norm)>("dsv2::rms_norm", x, w, eps);
    ctx->save_for_backward({x, w, scale});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [grad, grad_w] = call<decltype(rms_norm_backward)>("dsv2::rms_norm_backward", grads[0], std::nullopt, saved[0],
                                                            saved[1], saved[2]);
    return {grad, grad_w, Tensor()};
  }
};

struct AddRMSNorm : torch::autograd::Function<AddRMSNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& delta, const Tensor& w,
                               double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [total, y, scale] = call<decltype(add_rms_norm)>("dsv2::add_rms_norm", x, delta, w, eps);
    ctx->save_for_backward({total, w, scale});
    ctx->set_materialize_grads(false);
    return {total, y};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[1].defined()) return {grads[0], grads[0], Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    const auto passed = grads[0].defined() ? std::optional(grads[0]) : std::nullopt;
    auto [grad, grad_w] = call<decltype(rms_norm_backward)>("dsv2::rms_norm_backward", grads[1], passed, saved[0],
                                                            saved[1], saved[2]);
    return {grad, grad, grad_w, Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def("rms_norm(Tensor x, Tensor w, float eps) -> (Tensor y, Tensor scale)");
  m.def("add_rms_norm(Tensor x, Tensor delta, Tensor w, float eps) -> (Tensor total, Tensor y, Tensor scale)");
  m.def("rms_norm_backward(Tensor grad_y, Tensor? grad_total, Tensor total, Tensor w, Tensor scale) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("add_rms_norm", add_rms_norm);
  m.impl("rms_norm_backward", rms_norm_backward);
}
TORCH_LIBRARY_IMPL(dsv2, Autograd, m) {
  m.impl("rms_norm", [](const Tensor& x, const Tensor& w, double eps) {
    return std::make_tuple(RMSNorm::apply(x, w, eps), Tensor());
  });
  m.impl("add_rms_norm", [](const Tensor& x, const Tensor& delta, const Tensor& w, double eps) {
    auto out = AddRMSNorm::apply(x, delta, w, eps);
    return std::make_tuple(out[0], out[1], Tensor());
  });
}

}  // namespace dsv2
