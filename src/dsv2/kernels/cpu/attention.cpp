// Causal attention for short sequences, with RoPE inside: nothing is joined, padded or transposed in memory.
//
// B sequences, T tokens, H heads, G key-value heads, J heads of rotated keys, D width without RoPE, R with RoPE, V of
// values. Scores of one head and one block of queries at a time stay in the cache; the backward pass recomputes them from
// the logarithms of their sums.

#include "common.h"

namespace dsv2 {
namespace {

constexpr int64_t BLOCK = 64;  // queries

// Tokens (T, width) of one head within (B, T, heads, width).
Matrix head_of(const Tensor& x, int64_t b, int64_t head) {
  const int64_t length = x.size(1), heads = x.size(2), width = x.size(3);
  return {pointer(x) + (b * length * heads + head) * width, length, width, heads * width};
}

// x (B, T, heads, R) rotated by rotations (T, R / 2, 2), cosines and sines; backwards with `inverse`.
Tensor rotated(const Tensor& x, const Tensor& rotations, bool inverse) {
  Tensor out = at::empty_like(x);
  const int64_t length = x.size(1), heads = x.size(2), width = x.size(3);
  const float *turns = pointer(rotations), *from = pointer(x), sign = inverse ? -1.0f : 1.0f;
  float* to = pointer(out);
  over_rows(x.size(0) * length, heads * width, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const float* turn = turns + (n % length) * width;
      for (int64_t i = n * heads * width; i < (n + 1) * heads * width; i += width) {
        for (int64_t r = 0; r < width; r += 2) {
          const float c = turn[r], s = sign * turn[r + 1], a = from[i + r], b = from[i + r + 1];
          to[i + r] = a * c - b * s;
          to[i + r + 1] = a * s + b * c;
        }
      }
    }
  });
  return out;
}

// Turn the scores of queries start, start + 1, ... into weights, and return the log-sums.
void softmax_causal(const Matrix& scores, int64_t start, float scale, float* log_sums) {
  for (int64_t i = 0; i < scores.rows; ++i) {
    float* row = scores.row(i);
    const int64_t seen = start + i + 1;
    const float top = highest(row, seen), all = exponentiate(row, seen, top, scale);
    columns(seen, [&](int64_t k, int64_t c) { store(row, k, c, load(row, k, c) / Vec(all)); });
    std::fill(row + seen, row + scores.columns, 0.0f);
    log_sums[i] = top * scale + std::log(all);
  }
}

struct Inputs {
  Tensor q_nope, q_rope, k_nope, k_rope, v;  // contiguous; the RoPE parts rotated
  int64_t batch, length, heads;

  Matrix scores(int64_t b, int64_t h, int64_t start, std::vector<float>& buffer) const {
    const int64_t count = std::min(BLOCK, length - start), seen = start + count;
    buffer.resize(std::max<size_t>(buffer.size(), count * seen));
    const Matrix out{buffer.data(), count, seen, seen};
    const bool nope = q_nope.size(3) > 0;
    if (nope) multiply(query(q_nope, b, h, start, count), false, key(k_nope, b, h, seen), true, out);
    multiply(query(q_rope, b, h, start, count), false, key(k_rope, b, h, seen), true, out, nope);
    return out;
  }
  Matrix query(const Tensor& q, int64_t b, int64_t h, int64_t start, int64_t count) const {
    return head_of(q, b, h).part(start, count);
  }
  Matrix key(const Tensor& k, int64_t b, int64_t h, int64_t seen) const {
    return head_of(k, b, h * k.size(2) / heads).part(0, seen);
  }
};

// q_nope (B, T, H, D), q_rope (B, T, H, R), k_nope (B, T, G, D), k_rope (B, T, J, R), v (B, T, G, V), rotations
// (T, R / 2, 2): the output (B, T, H, V), then what the gradient needs: log-sums (B, H, T) and the rotated parts.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention(const Tensor& q_nope, const Tensor& q_rope, const Tensor& k_nope,
                                                     const Tensor& k_rope, const Tensor& v, const Tensor& rotations_in,
                                                     double scale) {
  const Tensor rotations = rotations_in.contiguous();
  const Inputs in{q_nope.contiguous(),
                  rotated(q_rope.contiguous(), rotations, false),
                  k_nope.contiguous(),
                  rotated(k_rope.contiguous(), rotations, false),
                  v.contiguous(),
                  q_rope.size(0),
                  q_rope.size(1),
                  q_rope.size(2)};
  Tensor out = at::empty({in.batch, in.length, in.heads, v.size(3)}, v.options());
  Tensor log_sums = at::empty({in.batch, in.heads, in.length}, v.options());
  at::parallel_for(0, in.batch * in.heads, 1, [&](int64_t first, int64_t last) {
    std::vector<float> buffer;
    for (int64_t n = first; n < last; ++n) {
      const int64_t b = n / in.heads, h = n % in.heads;
      for (int64_t start = 0; start < in.length; start += BLOCK) {
        const Matrix weights = in.scores(b, h, start, buffer);
        softmax_causal(weights, start, scale, pointer(log_sums) + n * in.length + start);
        multiply(weights, false, in.key(in.v, b, h, weights.columns), false,
                 in.query(out, b, h, start, weights.rows));
      }
    }
  });
  return {out, log_sums, in.q_rope, in.k_rope};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_in, const Tensor& q_nope,
                                                                      const Tensor& k_nope, const Tensor& v,
                                                                      const Tensor& rotations_in, double scale,
                                                                      const Tensor& out, const Tensor& log_sums,
                                                                      const Tensor& q_rotated,
                                                                      const Tensor& k_rotated) {
  const Tensor grad = grad_in.contiguous(), rotations = rotations_in.contiguous();
  const Inputs in{q_nope.contiguous(), q_rotated,   k_nope.contiguous(), k_rotated,
                  v.contiguous(),      out.size(0), out.size(1),         out.size(2)};
  Tensor dq_nope = at::empty_like(in.q_nope), dq_rope = at::empty_like(q_rotated);
  Tensor dk_nope = at::zeros_like(in.k_nope), dk_rope = at::zeros_like(k_rotated), dv = at::zeros_like(in.v);
  const bool nope = in.q_nope.size(3) > 0;
  at::parallel_for(0, in.batch, 1, [&](int64_t first, int64_t last) {  // heads may share keys: one thread a sequence
    std::vector<float> buffer, other;
    for (int64_t n = first * in.heads; n < last * in.heads; ++n) {
      const int64_t b = n / in.heads, h = n % in.heads;
      for (int64_t start = 0; start < in.length; start += BLOCK) {
        const Matrix p = in.scores(b, h, start, buffer);
        other.resize(std::max<size_t>(other.size(), p.rows * p.columns));
        const Matrix ds{other.data(), p.rows, p.columns, p.columns};
        const Matrix dout = in.query(grad, b, h, start, p.rows), o = in.query(out, b, h, start, p.rows);
        multiply(dout, false, in.key(in.v, b, h, p.columns), true, ds);
        for (int64_t i = 0; i < p.rows; ++i) {
          const Vec log_sum(pointer(log_sums)[n * in.length + start + i]), mean(dot(dout.row(i), o.row(i), o.columns));
          const int64_t seen = start + i + 1;
          columns(seen, [&](int64_t j, int64_t c) {
            const Vec weight = (load(p.row(i), j, c) * Vec(scale) - log_sum).exp();
            store(p.row(i), j, c, weight);
            store(ds.row(i), j, c, weight * (load(ds.row(i), j, c) - mean) * Vec(scale));
          });
          std::fill(p.row(i) + seen, p.row(i) + p.columns, 0.0f);
          std::fill(ds.row(i) + seen, ds.row(i) + p.columns, 0.0f);
        }
        multiply(p, true, dout, false, in.key(dv, b, h, p.columns), true);
        multiply(ds, false, in.key(in.k_rope, b, h, p.columns), false, in.query(dq_rope, b, h, start, p.rows));
        multiply(ds, true, in.query(in.q_rope, b, h, start, p.rows), false, in.key(dk_rope, b, h, p.columns), true);
        if (!nope) continue;
        multiply(ds, false, in.key(in.k_nope, b, h, p.columns), false, in.query(dq_nope, b, h, start, p.rows));
        multiply(ds, true, in.query(in.q_nope, b, h, start, p.rows), false, in.key(dk_nope, b, h, p.columns), true);
      }
    }
  });
  return {dq_nope, rotated(dq_rope, rotations, true), dk_nope, rotated(dk_rope, rotations, true), dv};
}

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q_nope, const Tensor& q_rope, const Tensor& k_nope,
                        const Tensor& k_rope, const Tensor& v, const Tensor& rotations, double scale) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, log_sums, q_rotated, k_rotated] =
        call<decltype(attention)>("dsv2::attention", q_nope, q_rope, k_nope, k_rope, v, rotations, scale);
    ctx->saved_data["scale"] = scale;
    ctx->save_for_backward({q_nope, k_nope, v, rotations, out, log_sums, q_rotated, k_rotated});
    return out;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [q_nope, q_rope, k_nope, k_rope, v] = call<decltype(attention_backward)>(
        "dsv2::attention_backward", grads[0], saved[0], saved[1], saved[2], saved[3], ctx->saved_data["scale"].toDouble(),
        saved[4], saved[5], saved[6], saved[7]);
    return {q_nope, q_rope, k_nope, k_rope, v, Tensor(), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def(
      "attention(Tensor q_nope, Tensor q_rope, Tensor k_nope, Tensor k_rope, Tensor v, Tensor rotations, float scale) "
      "-> (Tensor, Tensor log_sums, Tensor q_rotated, Tensor k_rotated)");
  m.def(
      "attention_backward(Tensor grad, Tensor q_nope, Tensor k_nope, Tensor v, Tensor rotations, float scale, "
      "Tensor out, Tensor log_sums, Tensor q_rotated, Tensor k_rotated) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) {
  m.impl("attention", attention);
  m.impl("attention_backward", attention_backward);
}
TORCH_LIBRARY_IMPL(dsv2, Autograd, m) {
  m.impl("attention", [](const Tensor& q_nope, const Tensor& q_rope, const Tensor& k_nope, const Tensor& k_rope,
                         const Tensor& v, const Tensor& rotations, double scale) {
    Tensor out = Attention::apply(q_nope, q_rope, k_nope, k_rope, v, rotations, scale);
    return std::make_tuple(out, Tensor(), Tensor(), Tensor());
  });
}

}  // namespace dsv2
