// From logits to experts: softmax, the limit of devices, the K highest affinities and their gates.

#include <algorithm>
#include <vector>

#include "common.h"

namespace dsv2 {
namespace {

// Write the indices of the `count` highest values, highest first, of equal ones the first. The values are overwritten.
// NaNs, which equal nothing, give valid indices all the same.
void select(float* values, int64_t width, int64_t count, int64_t* indices) {
  for (int64_t k = 0; k < count; ++k) {
    const int64_t found = std::find(values, values + width, highest(values, width)) - values;
    indices[k] = found < width ? found : k;
    values[indices[k]] = -std::numeric_limits<float>::infinity();
  }
}

// logits (..., E); affinities (..., E), experts and gates (..., K). D devices hold equal consecutive groups of experts.
std::tuple<Tensor, Tensor, Tensor> route_logits(const Tensor& logits_in, int64_t top_k, int64_t num_devices,
                                                int64_t max_devices) {
  const Tensor logits = logits_in.contiguous();
  Tensor affinities = at::empty_like(logits);
  auto shape = logits.sizes().vec();
  shape.back() = top_k;
  Tensor experts = at::empty(shape, logits.options().dtype(at::kLong)), gates = at::empty(shape, logits.options());
  const Matrix from = matrix(logits), to = matrix(affinities);
  int64_t* chosen = experts.data_ptr<int64_t>();
  float* weights = pointer(gates);
  const int64_t width = from.columns, group = width / num_devices;
  over_rows(from.rows, width, [&](int64_t first, int64_t last) {
    std::vector<float> eligible(width), tops(num_devices);
    std::vector<int64_t> devices(max_devices);
    for (int64_t n = first; n < last; ++n) {
      float* row = to.row(n);
      std::copy_n(from.row(n), width, row);
      const float total = exponentiate(row, width, highest(row, width), 1.0f);
      columns(width, [&](int64_t i, int64_t c) { store(row, i, c, load(row, i, c) / Vec(total)); });
      if (max_devices < num_devices) {
        for (int64_t d = 0; d < num_devices; ++d) tops[d] = highest(row + d * group, group);
        select(tops.data(), num_devices, max_devices, devices.data());
        std::fill(eligible.begin(), eligible.end(), -std::numeric_limits<float>::infinity());
        for (const int64_t d : devices) std::copy_n(row + d * group, group, eligible.begin() + d * group);
      } else {
        std::copy_n(row, width, eligible.begin());
      }
      int64_t* best = chosen + n * top_k;
      select(eligible.data(), width, top_k, best);
      for (int64_t k = 0; k < top_k; ++k) weights[n * top_k + k] = row[best[k]];
    }
  });
  return {affinities, experts, gates};
}

// The gradient of the logits from those of affinities and gates, either of which may be missing.
Tensor route_logits_backward(const std::optional<Tensor>& grad_affinities, const std::optional<Tensor>& grad_gates,
                             const Tensor& affinities, const Tensor& experts) {
  Tensor grad = at::empty_like(affinities);
  const Tensor passed = grad_affinities ? grad_affinities->contiguous() : Tensor();
  const Tensor chosen = grad_gates ? grad_gates->contiguous() : Tensor();
  const float *from_affinities = grad_affinities ? pointer(passed) : nullptr;
  const float *from_gates = grad_gates ? pointer(chosen) : nullptr;
  const int64_t *indices = experts.data_ptr<int64_t>(), top_k = experts.size(-1);
  const Matrix a = matrix(affinities), out = matrix(grad);
  over_rows(a.rows, a.columns, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      float* row = out.row(n);
      if (from_affinities) {
        std::copy_n(from_affinities + n * a.columns, a.columns, row);
      } else {
        std::fill_n(row, a.columns, 0.0f);
      }
      for (int64_t k = n * top_k; from_gates && k < (n + 1) * top_k; ++k) row[indices[k]] += from_gates[k];
      const Vec mean(dot(row, a.row(n), a.columns));
      columns(a.columns, [&](int64_t i, int64_t c) {
        store(row, i, c, load(a.row(n), i, c) * (load(row, i, c) - mean));
      });
    }
  });
  return grad;
}

struct RouteLogits : torch::autograd::Function<RouteLogits> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, int64_t top_k, int64_t num_devices,
                               int64_t max_devices) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [affinities, experts, gates] =
        call<decltype(route_logits)>("dsv2::route_logits", logits, top_k, num_devices, max_devices);
    ctx->save_for_backward({affinities, experts});
    ctx->mark_non_differentiable({experts});
    ctx->set_materialize_grads(false);
    return {affinities, experts, gates};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto given = [](const Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
    Tensor grad = call<decltype(route_logits_backward)>("dsv2::route_logits_backward", given(grads[0]),
                                                        given(grads[2]), saved[0], saved[1]);
    return {grad, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def("route_logits(Tensor logits, int top_k, int num_devices, int max_devices) -> (Tensor affinities, Tensor experts, Tensor gates)");
  m.def("route_logits_backward(Tensor? grad_affinities, Tensor? grad_gates, Tensor affinities, Tensor experts) -> Tensor");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) {
  m.impl("route_logits", route_logits);
  m.impl("route_logits_backward", route_logits_backward);
}
TORCH_LIBRARY_IMPL(dsv2, Autograd, m) {
  m.impl("route_logits", [](const Tensor& logits, int64_t top_k, int64_t num_devices, int64_t max_devices) {
    auto out = RouteLogits::apply(logits, top_k, num_devices, max_devices);
    return std::make_tuple(out[0], out[1], out[2]);
  });
}

}  // namespace dsv2
