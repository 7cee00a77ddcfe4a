// The routed experts of a layer: sort the token-expert pairs, multiply per expert, sum per token.
//
// N tokens, K experts per token, P = N K pairs, E experts, d model width, W expert width. Pairs are sorted by expert in a
// stable way; rows are gathered expert by expert into small buffers, so that products run in the cache.

#include "few.h"
#include "swiglu.h"

namespace dsv2 {
namespace {

struct Sorted {
  std::vector<int64_t> order;    // (P,) pairs by expert
  std::vector<int64_t> inverse;  // (P,) place of each pair in that order
  std::vector<int64_t> begin;    // (E + 1,) where each expert's rows begin
};

Sorted sorted(const Tensor& experts, int64_t num_experts) {
  const int64_t pairs = experts.numel();
  const int64_t* chosen = experts.data_ptr<int64_t>();
  Sorted s{std::vector<int64_t>(pairs), std::vector<int64_t>(pairs), std::vector<int64_t>(num_experts + 1, 0)};
  for (int64_t p = 0; p < pairs; ++p) {
    TORCH_CHECK(0 <= chosen[p] && chosen[p] < num_experts, "experts: ", chosen[p], " is not one of ", num_experts);
    ++s.begin[chosen[p] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) s.begin[e + 1] += s.begin[e];
  std::vector<int64_t> next(s.begin.begin(), s.begin.end() - 1);
  for (int64_t p = 0; p < pairs; ++p) {
    s.inverse[p] = next[chosen[p]]++;
    s.order[s.inverse[p]] = p;
  }
  return s;
}

// Run `body(expert, first row, number of rows)` for every expert; threads get about the same number of rows each. With
// few experts they run one after the other, and the products themselves use the threads.
template <typename Body>
void over_experts(const Sorted& s, const Body& body) {
  const int64_t experts = s.begin.size() - 1, pairs = s.begin.back(), threads = at::get_num_threads();
  auto run = [&](int64_t e) { body(e, s.begin[e], s.begin[e + 1] - s.begin[e]); };
  if (experts < 2 * threads || threads == 1) {
    for (int64_t e = 0; e < experts; ++e) run(e);
    return;
  }
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t middle = s.begin[e] + s.begin[e + 1];  // twice
      const int64_t thread = pairs ? std::min(middle * threads / (2 * pairs), threads - 1) : 0;
      if (first <= thread && thread < last) run(e);
    }
  });
}

void gather(const Matrix& from, const Sorted& s, int64_t first, int64_t top_k, const Matrix& to) {
  for (int64_t i = 0; i < to.rows; ++i) {
    std::copy_n(from.row(s.order[first + i] / top_k), to.columns, to.row(i));
  }
}

// out (N, d) = the sum of each token's K rows.
void sum_per_token(const Matrix& rows, const Sorted& s, int64_t top_k, const Matrix& out) {
  over_rows(out.rows, out.columns * top_k, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const int64_t* places = s.inverse.data() + n * top_k;
      columns(out.columns, [&](int64_t i, int64_t c) {
        Vec total = load(rows.row(places[0]), i, c);
        for (int64_t k = 1; k < top_k; ++k) total = total + load(rows.row(places[k]), i, c);
        store(out.row(n), i, c, total);
      });
    }
  });
}

Matrix scratch(std::vector<float>& buffer, int64_t rows, int64_t width) {
  buffer.resize(std::max<size_t>(buffer.size(), rows * width));
  return {buffer.data(), rows, width, width};
}

Matrix of_expert(const Tensor& w, int64_t e) {
  return {pointer(w) + e * w.size(1) * w.size(2), w.size(1), w.size(2), w.size(2)};
}

// c = a b, of any number of rows.
void times_any(const Matrix& a, const Matrix& b, const Matrix& c) {
  if (a.rows <= FEW) {
    times(a, b, c);
  } else {
    multiply(a, false, b, false, c);
  }
}

// x (..., d), experts and gates (..., K), w_gate_up (E, d, 2W), w_down (E, W, d): the output (..., d), and before the
// activation (P, 2W) for the gradient.
std::tuple<Tensor, Tensor> experts_forward(const Tensor& x_in, const Tensor& experts_in, const Tensor& gates_in,
                                           const Tensor& w_gate_up_in, const Tensor& w_down_in) {
  const Tensor x = x_in.contiguous(), experts = experts_in.contiguous(), gates = gates_in.contiguous();
  const Tensor w_gate_up = w_gate_up_in.contiguous(), w_down = w_down_in.contiguous();
  const int64_t dim = x.size(-1), top_k = experts.size(-1), width = w_down.size(1), pairs = experts.numel();
  const Sorted s = sorted(experts, w_down.size(0));
  Tensor hidden = at::empty({pairs, 2 * width}, x.options()), out = at::empty_like(x);
  Tensor rows = at::empty({pairs, dim}, x.options());
  const Matrix from = matrix(x), before = matrix(hidden), after = matrix(rows);
  const float* gate = pointer(gates);
  over_experts(s, [&](int64_t e, int64_t first, int64_t count) {
    thread_local std::vector<float> inputs, active;
    const Matrix in = scratch(inputs, count, dim), mid = scratch(active, count, width);
    const Matrix h = before.part(first, count);
    gather(from, s, first, top_k, in);
    times_any(in, of_expert(w_gate_up, e), h);
    for (int64_t i = 0; i < count; ++i) swiglu_row(h.row(i), width, gate[s.order[first + i]], mid.row(i));
    times_any(mid, of_expert(w_down, e), after.part(first, count));
  });
  sum_per_token(after, s, top_k, matrix(out));
  return {out, hidden};
}

// The gradients of x, gates, w_gate_up and w_down.
std::tuple<Tensor, Tensor, Tensor, Tensor> experts_backward(const Tensor& grad_in, const Tensor& x_in,
                                                            const Tensor& experts_in, const Tensor& gates_in,
                                                            const Tensor& w_gate_up_in, const Tensor& w_down_in,
                                                            const Tensor& hidden) {
  const Tensor grad = grad_in.contiguous(), x = x_in.contiguous(), experts = experts_in.contiguous();
  const Tensor gates = gates_in.contiguous(), w_gate_up = w_gate_up_in.contiguous(), w_down = w_down_in.contiguous();
  const int64_t dim = x.size(-1), top_k = experts.size(-1), width = w_down.size(1), pairs = experts.numel();
  const Sorted s = sorted(experts, w_down.size(0));
  Tensor grad_x = at::empty_like(x), grad_gates = at::empty_like(gates), rows = at::empty({pairs, dim}, x.options());
  Tensor grad_gate_up = at::empty_like(w_gate_up), grad_down = at::empty_like(w_down);
  const Matrix from = matrix(x), dout = matrix(grad), before = matrix(hidden), dx = matrix(rows);
  const float* gate = pointer(gates);
  float* dgate = pointer(grad_gates);
  over_experts(s, [&](int64_t e, int64_t first, int64_t count) {
    const Matrix d_gate_up = of_expert(grad_gate_up, e), d_down = of_expert(grad_down, e);
    if (count == 0) {
      std::fill_n(d_gate_up.data, d_gate_up.rows * d_gate_up.columns, 0.0f);
      std::fill_n(d_down.data, d_down.rows * d_down.columns, 0.0f);
      return;
    }
    thread_local std::vector<float> inputs, outputs, active, inner, outer;
    const Matrix in = scratch(inputs, count, dim), out = scratch(outputs, count, dim);
    const Matrix mid = scratch(active, count, width), d_mid = scratch(inner, count, width);
    const Matrix d_h = scratch(outer, count, 2 * width), h = before.part(first, count);
    gather(from, s, first, top_k, in);
    gather(dout, s, first, top_k, out);
    multiply(out, false, of_expert(w_down, e), true, d_mid);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t pair = s.order[first + i];
      swiglu_row(h.row(i), width, 1.0f, mid.row(i));
      dgate[pair] = dot(d_mid.row(i), mid.row(i), width);
      swiglu_row_backward(d_mid.row(i), h.row(i), width, gate[pair], d_h.row(i));
      columns(width, [&](int64_t j, int64_t c) {
        store(mid.row(i), j, c, Vec(gate[pair]) * load(mid.row(i), j, c));
      });
    }
    multiply(mid, true, out, false, d_down);
    multiply(in, true, d_h, false, d_gate_up);
    multiply(d_h, false, of_expert(w_gate_up, e), true, dx.part(first, count));
  });
  sum_per_token(dx, s, top_k, matrix(grad_x));
  return {grad_x, grad_gates, grad_gate_up, grad_down};
}

struct Experts : torch::autograd::Function<Experts> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& experts, const Tensor& gates,
                        const Tensor& w_gate_up, const Tensor& w_down) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, hidden] = call<decltype(experts_forward)>("dsv2::experts", x, experts, gates, w_gate_up, w_down);
    ctx->save_for_backward({x, experts, gates, w_gate_up, w_down, hidden});
    return out;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [x, gates, gate_up, down] = call<decltype(experts_backward)>(
        "dsv2::experts_backward", grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5]);
    return {x, Tensor(), gates, gate_up, down};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def("experts(Tensor x, Tensor experts, Tensor gates, Tensor w_gate_up, Tensor w_down) -> (Tensor, Tensor hidden)");
  m.def(
      "experts_backward(Tensor grad, Tensor x, Tensor experts, Tensor gates, Tensor w_gate_up, Tensor w_down, "
      "Tensor hidden) -> (Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) {
  m.impl("experts", experts_forward);
  m.impl("experts_backward", experts_backward);
}
TORCH_LIBRARY_IMPL(dsv2, Autograd, m) {
  m.impl("experts", [](const Tensor& x, const Tensor& experts, const Tensor& gates, const Tensor& w_gate_up,
                       const Tensor& w_down) {
    return std::make_tuple(Experts::apply(x, experts, gates, w_gate_up, w_down), Tensor());
  });
}

}  // namespace dsv2
