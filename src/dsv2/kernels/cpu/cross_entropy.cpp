// The output head and the mean cross-entropy in one op: logits exist for one chunk of tokens at a time.
//
// N tokens, d model width, V vocabulary. The gradients are computed with the loss, while a chunk's logits are at hand.

#include "common.h"

namespace dsv2 {
namespace {

constexpr int64_t CHUNK_FLOATS = 1 << 19;  // of logits, 2 MB
constexpr int64_t FEWEST_ROWS = 64;        // per chunk, for efficient products

// Returns the loss of one row of logits, and turns the row into its gradient, times `factor`.
float row_loss(float* row, int64_t vocabulary, int64_t target, float factor) {
  const float top = highest(row, vocabulary), of_target = row[target] - top;
  const float all = exponentiate(row, vocabulary, top, 1.0f);
  const Vec share(factor / all);
  columns(vocabulary, [&](int64_t i, int64_t c) { store(row, i, c, load(row, i, c) * share); });
  row[target] -= factor;
  return std::log(all) - of_target;
}

// x (N, d), w (V, d), targets (N,) int64: the mean over the targets that are not `ignored`, and its gradients of x and w
// (empty if not `differentiate`).
std::tuple<Tensor, Tensor, Tensor> head_loss(const Tensor& x_in, const Tensor& w_in, const Tensor& targets_in,
                                             int64_t ignored, bool differentiate) {
  const Tensor x = x_in.contiguous(), w = w_in.contiguous(), targets = targets_in.contiguous();
  const Matrix from = matrix(x), weights = matrix(w);
  const int64_t vocabulary = weights.rows, size = std::max(FEWEST_ROWS, CHUNK_FLOATS / vocabulary);
  const int64_t* target = targets.data_ptr<int64_t>();
  int64_t scored = 0;
  for (int64_t n = 0; n < from.rows; ++n) {
    if (target[n] == ignored) continue;
    TORCH_CHECK(0 <= target[n] && target[n] < vocabulary, "targets: ", target[n], " is not one of ", vocabulary);
    ++scored;
  }
  Tensor logits = at::empty({std::min(size, from.rows), vocabulary}, x.options());
  Tensor losses = at::zeros({from.rows}, x.options().dtype(at::kFloat));
  Tensor grad_x = differentiate ? at::empty_like(x) : at::empty({0}, x.options());
  Tensor grad_w = differentiate ? at::zeros_like(w) : at::empty({0}, x.options());
  for (int64_t start = 0; start < from.rows; start += size) {
    const int64_t count = std::min(size, from.rows - start);
    const Matrix chunk = matrix(logits).part(0, count), rows = from.part(start, count);
    multiply(rows, false, weights, true, chunk);
    over_rows(count, vocabulary, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        if (target[start + n] == ignored) {
          std::fill_n(chunk.row(n), vocabulary, 0.0f);
        } else {
          pointer(losses)[start + n] = row_loss(chunk.row(n), vocabulary, target[start + n], 1.0f / scored);
        }
      }
    });
    if (!differentiate) continue;
    multiply(chunk, false, weights, false, matrix(grad_x).part(start, count));
    multiply(chunk, true, rows, false, matrix(grad_w), true);
  }
  return {losses.sum() / static_cast<double>(scored), grad_x, grad_w};
}

struct HeadLoss : torch::autograd::Function<HeadLoss> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const Tensor& targets,
                        int64_t ignored, bool differentiate) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, grad_x, grad_w] =
        call<decltype(head_loss)>("dsv2::head_loss", x, w, targets, ignored, differentiate);
    if (differentiate) ctx->save_for_backward({grad_x, grad_w});
    return loss;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {saved[0] * grads[0], saved[1] * grads[0], Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def(
      "head_loss(Tensor x, Tensor w, Tensor targets, int ignored, bool differentiate) "
      "-> (Tensor, Tensor grad_x, Tensor grad_w)");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) { m.impl("head_loss", head_loss); }
TORCH_LIBRARY_IMPL(dsv2, Autograd, m) {
  m.impl("head_loss", [](const Tensor& x, const Tensor& w, const Tensor& targets, int64_t ignored, bool) {
    const bool differentiate = at::GradMode::is_enabled() && (x.requires_grad() || w.requires_grad());
    return std::make_tuple(HeadLoss::apply(x, w, targets, ignored, differentiate), Tensor(), Tensor());
  });
}

}  // namespace dsv2
