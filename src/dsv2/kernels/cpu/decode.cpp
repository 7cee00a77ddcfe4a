// One new token of every row through an attention layer: projections, RoPE, the cache, attention and output in one op.
//
// B rows, S room of the cache, H heads, G key-value heads, d model width; of MLA, D width without RoPE, R with RoPE, C of
// latents, V of values. Attention is split over the keys into pieces of equal length, so that threads have equal work
// with any number of rows, and what a row comes to does not depend on how many there are.

#include "few.h"

namespace dsv2 {
namespace {

constexpr int64_t PIECE = 256;  // keys; two passes over them stay in the L2 cache

void normalise(const Matrix& x, const float* w, double eps) {
  for (int64_t n = 0; n < x.rows; ++n) {
    float* row = x.row(n);
    const Vec scale(1.0f / std::sqrt(dot(row, row, x.columns) / x.columns + static_cast<float>(eps)));
    columns(x.columns, [&](int64_t i, int64_t c) { store(row, i, c, load(row, i, c) * scale * load(w, i, c)); });
  }
}

// Turn each pair of a row (R,) by the complex number beside it.
void rotate(float* row, const float* turns, int64_t width) {
  for (int64_t r = 0; r < width; r += 2) {
    const float a = row[r], b = row[r + 1];
    row[r] = a * turns[r] - b * turns[r + 1];
    row[r + 1] = a * turns[r + 1] + b * turns[r];
  }
}

// Rotations (1 or B, R / 2) of the rows' new positions.
struct Turns {
  const float* data;
  int64_t width, stride;
  explicit Turns(const Tensor& rotations)
      : data(reinterpret_cast<const float*>(rotations.const_data_ptr<c10::complex<float>>())),
        width(2 * rotations.size(-1)),
        stride(rotations.numel() == rotations.size(-1) ? 0 : width) {}
  // Rotate the last R channels of each head of row b (heads x width).
  void apply(int64_t b, const Matrix& heads) const {
    for (int64_t h = 0; h < heads.rows; ++h) rotate(heads.row(h) + heads.columns - width, data + b * stride, width);
  }
};

// The heads of one row that share keys and values, and what they see. Scores are summed over the parts.
struct Group {
  std::vector<std::pair<Matrix, Matrix>> parts;  // queries (heads, width), keys (seen, width)
  Matrix values, out;                            // (seen, V), (heads, V)
};

void attend(const std::vector<Group>& groups, float scale) {
  struct Piece {
    const Group* group;
    int64_t first, count, place;  // keys; the first of its heads among the partial results
  };
  std::vector<Piece> pieces;
  std::vector<size_t> begin{0};  // the first piece of each group
  int64_t places = 0;
  for (const Group& group : groups) {
    for (int64_t first = 0; first < group.values.rows; first += PIECE) {
      pieces.push_back({&group, first, std::min(PIECE, group.values.rows - first), places});
      places += group.out.rows;
    }
    begin.push_back(pieces.size());
  }
  const int64_t width = groups.front().values.columns;
  std::vector<float> tops(places), totals(places), partial(places * width);
  at::parallel_for(0, pieces.size(), 1, [&](int64_t from, int64_t to) {
    std::vector<float> buffer;
    for (int64_t n = from; n < to; ++n) {
      const Piece& piece = pieces[n];
      const int64_t heads = piece.group->out.rows;
      buffer.resize(std::max<size_t>(buffer.size(), heads * piece.count));
      const Matrix scores{buffer.data(), heads, piece.count, piece.count};
      bool add = false;
      for (const auto& [queries, keys] : piece.group->parts) {
        times_transposed(queries, keys.part(piece.first, piece.count), scores, add);
        add = true;
      }
      for (int64_t h = 0; h < heads; ++h) {
        tops[piece.place + h] = highest(scores.row(h), piece.count);
        totals[piece.place + h] = exponentiate(scores.row(h), piece.count, tops[piece.place + h], scale);
      }
      times(scores, piece.group->values.part(piece.first, piece.count), {&partial[piece.place * width], heads, width, width});
    }
  });
  for (size_t g = 0; g < groups.size(); ++g) {
    const Matrix& out = groups[g].out;
    for (int64_t h = 0; h < out.rows; ++h) {
      float top = -std::numeric_limits<float>::infinity(), total = 0;
      for (size_t n = begin[g]; n < begin[g + 1]; ++n) top = std::max(top, tops[pieces[n].place + h]);
      std::fill_n(out.row(h), width, 0.0f);
      for (size_t n = begin[g]; n < begin[g + 1]; ++n) {
        const int64_t place = pieces[n].place + h;
        const float weight = std::exp((tops[place] - top) * scale);
        total += totals[place] * weight;
        columns(width, [&](int64_t i, int64_t c) {
          store(out.row(h), i, c, at::vec::fmadd(Vec(weight), load(&partial[place * width], i, c), load(out.row(h), i, c)));
        });
      }
      columns(width, [&](int64_t i, int64_t c) { store(out.row(h), i, c, load(out.row(h), i, c) / Vec(total)); });
    }
  }
}

// Row b of a cache (B, S, ..., width) from `head` on: its first `count` tokens, which are `stride(1)` floats apart.
Matrix cached(const Tensor& cache, int64_t b, int64_t count, int64_t head = 0) {
  const int64_t width = cache.size(-1);
  return {pointer(cache) + b * cache.stride(0) + head * width, count, width, cache.stride(1)};
}

// One row's heads (heads, width) of a matrix (B, heads x width).
Matrix heads_of(const Matrix& x, int64_t b, int64_t width) { return {x.row(b), x.columns / width, width, width}; }

void check(const Tensor& cache, const Tensor& lengths, int64_t batch) {
  TORCH_CHECK(cache.size(0) == batch && cache.stride(-1) == 1, "cache: must have a row per token, channels last");
  const int64_t* length = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK(1 <= length[b] && length[b] <= cache.size(1), "lengths: ", length[b], " is not between 1 and ", cache.size(1));
  }
}

// h (B, 1, d), rotations (1 or B, R / 2) complex, latents (B, S, C) and keys (B, S, R), whose tokens `lengths` (B,) - 1
// are written: the output (B, 1, d). Without query compression w_dq and q_norm are missing.
Tensor mla_step(const Tensor& h_in, const Tensor& rotations, const std::optional<Tensor>& w_dq,
                const std::optional<Tensor>& q_norm, const Tensor& w_uq, const Tensor& w_qr, const Tensor& w_dkv,
                const Tensor& kv_norm, const Tensor& w_kr, const Tensor& w_uk, const Tensor& w_uv, const Tensor& w_o,
                int64_t num_heads, double eps, double scale, const Tensor& latents, const Tensor& keys,
                const Tensor& lengths) {
  const Tensor h = h_in.contiguous();
  const int64_t batch = h.size(0), nope = w_uk.size(0) / num_heads, rope = keys.size(-1), width = w_uv.size(0) / num_heads;
  const int64_t latent = latents.size(-1);
  check(latents, lengths, batch);
  check(keys, lengths, batch);
  const int64_t* length = lengths.const_data_ptr<int64_t>();
  auto rows = [&](int64_t columns) { return at::empty({batch, columns}, h.options()); };
  const Tensor q_nope = rows(num_heads * nope), q_rope = rows(num_heads * rope), c_kv = rows(latent), k_rope = rows(rope);
  const Matrix x = matrix(h);
  const Product kv{x, weight(w_dkv), matrix(c_kv)}, key{x, weight(w_kr), matrix(k_rope)};
  Tensor compressed;
  if (w_dq) {
    compressed = rows(w_dq->size(0));
    project({{x, weight(*w_dq), matrix(compressed)}, kv, key});
    normalise(matrix(compressed), pointer(*q_norm), eps);
  }
  const Matrix c_q = w_dq ? matrix(compressed) : x;
  const Product up{c_q, weight(w_uq), matrix(q_nope)}, turned{c_q, weight(w_qr), matrix(q_rope)};
  if (w_dq) {
    project({up, turned});
  } else {
    project({up, turned, kv, key});
  }
  normalise(matrix(c_kv), pointer(kv_norm), eps);
  const Turns turns(rotations);
  for (int64_t b = 0; b < batch; ++b) {
    turns.apply(b, heads_of(matrix(q_rope), b, rope));
    turns.apply(b, heads_of(matrix(k_rope), b, rope));
    std::copy_n(matrix(c_kv).row(b), latent, cached(latents, b, length[b]).row(length[b] - 1));
    std::copy_n(matrix(k_rope).row(b), rope, cached(keys, b, length[b]).row(length[b] - 1));
  }
  const Tensor q_latent = rows(num_heads * latent), seen = rows(num_heads * latent), values = rows(num_heads * width);
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, batch * latent * std::max(nope, width)));
  // One head of all rows at a time: (B, width) within (B, H width).
  auto head = [](const Tensor& x, int64_t h, int64_t width) {
    return Matrix{pointer(x) + h * width, x.size(0), width, x.size(1)};
  };
  at::parallel_for(0, num_heads, grain, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      times(head(q_nope, n, nope), weight(w_uk).part(n * nope, nope), head(q_latent, n, latent));
    }
  });
  std::vector<Group> groups;
  for (int64_t b = 0; b < batch; ++b) {
    const Matrix c = cached(latents, b, length[b]);
    groups.push_back({{{heads_of(matrix(q_latent), b, latent), c},
                       {heads_of(matrix(q_rope), b, rope), cached(keys, b, length[b])}},
                      c,
                      heads_of(matrix(seen), b, latent)});
  }
  attend(groups, scale);
  at::parallel_for(0, num_heads, grain, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      dots(head(seen, n, latent), weight(w_uv).part(n * width, width), head(values, n, width));
    }
  });
  Tensor out = at::empty_like(h);
  project({{matrix(values), weight(w_o), matrix(out)}});
  return out;
}

// h (B, 1, d), rotations (1 or B, R / 2) complex, keys and values (B, S, G, D), whose tokens `lengths` (B,) - 1 are
// written: the output (B, 1, d). k_norm (D,) may be missing.
Tensor gqa_step(const Tensor& h_in, const Tensor& rotations, const Tensor& w_q, const Tensor& w_k, const Tensor& w_v,
                const std::optional<Tensor>& k_norm, const Tensor& w_o, double eps, double scale, const Tensor& keys,
                const Tensor& values, const Tensor& lengths) {
  const Tensor h = h_in.contiguous();
  const int64_t batch = h.size(0), num_groups = keys.size(2), width = keys.size(3), shared = w_q.size(0) / w_k.size(0);
  check(keys, lengths, batch);
  check(values, lengths, batch);
  const int64_t* length = lengths.const_data_ptr<int64_t>();
  auto rows = [&](int64_t columns) { return at::empty({batch, columns}, h.options()); };
  const Tensor q = rows(w_q.size(0)), k = rows(w_k.size(0)), v = rows(w_v.size(0)), seen = rows(w_q.size(0));
  const Matrix x = matrix(h);
  project({{x, weight(w_q), matrix(q)}, {x, weight(w_k), matrix(k)}, {x, weight(w_v), matrix(v)}});
  const Turns turns(rotations);
  std::vector<Group> groups;
  for (int64_t b = 0; b < batch; ++b) {
    const Matrix queries = heads_of(matrix(q), b, width), own = heads_of(matrix(k), b, width);
    if (k_norm) normalise(own, pointer(*k_norm), eps);
    turns.apply(b, queries);
    turns.apply(b, own);
    for (int64_t g = 0; g < num_groups; ++g) {
      const Matrix key = cached(keys, b, length[b], g), value = cached(values, b, length[b], g);
      std::copy_n(own.row(g), width, key.row(length[b] - 1));
      std::copy_n(matrix(v).row(b) + g * width, width, value.row(length[b] - 1));
      groups.push_back({{{queries.part(g * shared, shared), key}},
                        value,
                        heads_of(matrix(seen), b, width).part(g * shared, shared)});
    }
  }
  attend(groups, scale);
  Tensor out = at::empty_like(h);
  project({{matrix(seen), weight(w_o), matrix(out)}});
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def(
      "mla_step(Tensor h, Tensor rotations, Tensor? w_dq, Tensor? q_norm, Tensor w_uq, Tensor w_qr, Tensor w_dkv, "
      "Tensor kv_norm, Tensor w_kr, Tensor w_uk, Tensor w_uv, Tensor w_o, int num_heads, float eps, float scale, "
      "Tensor(a!) latents, Tensor(b!) keys, Tensor lengths) -> Tensor");
  m.def(
      "gqa_step(Tensor h, Tensor rotations, Tensor w_q, Tensor w_k, Tensor w_v, Tensor? k_norm, Tensor w_o, float eps, "
      "float scale, Tensor(a!) keys, Tensor(b!) values, Tensor lengths) -> Tensor");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) {
  m.impl("mla_step", mla_step);
  m.impl("gqa_step", gqa_step);
}

}  // namespace dsv2
