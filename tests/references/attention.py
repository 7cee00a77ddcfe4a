"""Positions and attention."""

import math

import torch
from torch import Tensor

from tests.references.basics import Weights, rms_norm, softmax

LATENT_EPS = 1e-6  # of the two latent norms, whatever the model's own epsilon


def rope_frequencies(dim: int, base: float) -> list[float]:
    """theta_j = base^(-2j / dim), one for each of dim / 2 pairs."""
    return [base ** (-2 * j / dim) for j in range(dim // 2)]


def yarn_frequencies(
    dim: int, base: float, factor: float, original_length: int, beta_fast: float, beta_slow: float
) -> list[float]:
    """theta_j for pairs that turn over beta_fast times in original_length, theta_j / factor for those under beta_slow,
    and a line in j between the two (3.1.4; the ends rounded outwards to whole pairs, as the checkpoints have it).
    """

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original_length / (2 * math.pi * times)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), dim - 1)
    thetas = []
    for j, theta in enumerate(rope_frequencies(dim, base)):
        stretched = min(max((j - low) / (high - low or 0.001), 0.0), 1.0)
        thetas.append(theta / factor * stretched + theta * (1 - stretched))
    return thetas


def yarn_scale(factor: float, mscale: float) -> float:
    """0.1 mscale ln(factor) + 1, and 1 where nothing is stretched (3.1.4)."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def yarn_softmax_factor(factor: float, mscale_all_dim: float) -> float:
    """What the softmax scale is multiplied by: (0.1 mscale_all_dim ln(factor) + 1)^2 (3.1.4)."""
    return yarn_scale(factor, mscale_all_dim) ** 2


def yarn_cos_sin_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """What cosines and sines are multiplied by: the two scales' ratio, 1 in the checkpoints (3.1.4)."""
    return yarn_scale(factor, mscale) / yarn_scale(factor, mscale_all_dim)


def turn(x: Tensor, position: int, thetas: list[float], factor: float = 1.0) -> Tensor:
    """Pairs (x_2j, x_2j+1), neighbours and not halves, turned by position theta_j (Eq. 14, 15); x (dim,)."""
    turned = []
    for j, theta in enumerate(thetas):
        cos, sin = factor * math.cos(position * theta), factor * math.sin(position * theta)
        turned += [x[2 * j] * cos - x[2 * j + 1] * sin, x[2 * j] * sin + x[2 * j + 1] * cos]
    return torch.stack(turned)


# Attention


def attend(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], scale: float) -> list[Tensor]:
    """o_t = sum_s softmax_s(scale q_t . k_s) v_s over s <= t (Eq. 7, 18); one head of one sequence."""
    outputs = []
    for t, query in enumerate(queries):
        weights = softmax([scale * (query @ keys[s]) for s in range(t + 1)])
        outputs.append(sum(weights[s] * values[s] for s in range(t + 1)))
    return outputs


def heads(x: Tensor, width: int) -> list[Tensor]:
    """x cut into heads of that width, in order."""
    return [x[start : start + width] for start in range(0, len(x), width)]


def gqa(
    h: Tensor,
    w: Weights,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rope_dim: int,
    thetas: list[float],
    rope_factor: float = 1.0,
    softmax_factor: float = 1.0,
    key_norm: bool = False,
) -> Tensor:
    """Head i reads key-value group i // (H / G) (appendix C); RoPE turns a head's last rope_dim channels; h (B, T, d).

    With `key_norm` each head's key is normed before it is turned.

    num_kv_heads = 1 is MQA; with num_kv_heads = num_heads it must be `mha`.
    """

    def turn_last(x: Tensor, t: int) -> Tensor:
        return torch.cat([x[: head_dim - rope_dim], turn(x[head_dim - rope_dim :], t, thetas, rope_factor)])

    def normed(k: Tensor) -> Tensor:
        return rms_norm(k, w["k_norm.w"], LATENT_EPS) if key_norm else k

    scale = softmax_factor / math.sqrt(head_dim)
    sequences = []
    for sequence in h:
        q = [[turn_last(x, t) for x in heads(w["w_q"] @ token, head_dim)] for t, token in enumerate(sequence)]
        k = [[turn_last(normed(x), t) for x in heads(w["w_k"] @ token, head_dim)] for t, token in enumerate(sequence)]
        v = [heads(w["w_v"] @ token, head_dim) for token in sequence]
        out = []
        for i in range(num_heads):
            j = i // (num_heads // num_kv_heads)
            out.append(attend([x[i] for x in q], [x[j] for x in k], [x[j] for x in v], scale))
        sequences.append(torch.stack([w["w_o"] @ torch.cat([o[t] for o in out]) for t in range(len(sequence))]))
    return torch.stack(sequences)


def mha(h: Tensor, w: Weights, *, num_heads: int, head_dim: int, thetas: list[float]) -> Tensor:
    """Every head with a key and a value of its own, all of it turned (Eq. 1-8); h (B, T, d)."""
    y = torch.zeros_like(h)
    for b, sequence in enumerate(h):
        for i in range(num_heads):
            own = slice(i * head_dim, (i + 1) * head_dim)
            q = [turn(w["w_q"][own] @ token, t, thetas) for t, token in enumerate(sequence)]
            k = [turn(w["w_k"][own] @ token, t, thetas) for t, token in enumerate(sequence)]
            v = [w["w_v"][own] @ token for token in sequence]
            for t, o in enumerate(attend(q, k, v, 1 / math.sqrt(head_dim))):
                y[b, t] = y[b, t] + w["w_o"][:, own] @ o
    return y


def mla_cached(h: Tensor, w: Weights, *, thetas: list[float], rope_factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """All that decoding keeps: norm(W_DKV h) (B, T, r) and RoPE(W_KR h) (B, T, rope), one key for all (Eq. 9, 15)."""
    latents, keys = [], []
    for sequence in h:
        latents.append(torch.stack([rms_norm(w["w_dkv"] @ token, w["kv_norm.w"], LATENT_EPS) for token in sequence]))
        keys.append(torch.stack([turn(w["w_kr"] @ x, t, thetas, rope_factor) for t, x in enumerate(sequence)]))
    return torch.stack(latents), torch.stack(keys)


def mla_queries(
    token: Tensor, t: int, w: Weights, head_dim: int, rope_dim: int, thetas: list[float], rope_factor: float
) -> list[tuple[Tensor, Tensor]]:
    """(q_C, q_R) of each head, from norm(W_DQ h), or from h itself without query compression (Eq. 12-14)."""
    c_q = rms_norm(w["w_dq"] @ token, w["q_norm.w"], LATENT_EPS) if "w_dq" in w else token
    q_rope = [turn(x, t, thetas, rope_factor) for x in heads(w["w_qr"] @ c_q, rope_dim)]
    return list(zip(heads(w["w_uq"] @ c_q, head_dim), q_rope, strict=True))


def mla(
    h: Tensor,
    w: Weights,
    *,
    num_heads: int,
    head_dim: int,
    rope_dim: int,
    v_dim: int,
    thetas: list[float],
    rope_factor: float = 1.0,
    softmax_factor: float = 1.0,
) -> Tensor:
    """scores (q_C . k_C + q_R . k_R) / sqrt(d_h + d_h^R), keys and values expanded from the latent (Eq. 9-19)."""
    scale = softmax_factor / math.sqrt(head_dim + rope_dim)
    latents, k_rope = mla_cached(h, w, thetas=thetas, rope_factor=rope_factor)
    sequences = []
    for b, sequence in enumerate(h):
        queries = [mla_queries(x, t, w, head_dim, rope_dim, thetas, rope_factor) for t, x in enumerate(sequence)]
        out = []
        for i in range(num_heads):
            w_uk, w_uv = heads(w["w_uk"], head_dim)[i], heads(w["w_uv"], v_dim)[i]
            q = [torch.cat(query[i]) for query in queries]
            k = [torch.cat([w_uk @ latents[b, s], k_rope[b, s]]) for s in range(len(sequence))]
            v = [w_uv @ latents[b, s] for s in range(len(sequence))]
            out.append(attend(q, k, v, scale))
        sequences.append(torch.stack([w["w_o"] @ torch.cat([o[t] for o in out]) for t in range(len(sequence))]))
    return torch.stack(sequences)


def mla_absorbed(
    h: Tensor,
    w: Weights,
    *,
    num_heads: int,
    head_dim: int,
    rope_dim: int,
    v_dim: int,
    thetas: list[float],
    rope_factor: float = 1.0,
    softmax_factor: float = 1.0,
) -> Tensor:
    """`mla` with W_UK moved to the query and W_UV to the output: heads attend over the latents themselves (2.1.2)."""
    scale = softmax_factor / math.sqrt(head_dim + rope_dim)
    latents, k_rope = mla_cached(h, w, thetas=thetas, rope_factor=rope_factor)
    y = torch.zeros_like(h)
    for b, sequence in enumerate(h):
        queries = [mla_queries(x, t, w, head_dim, rope_dim, thetas, rope_factor) for t, x in enumerate(sequence)]
        cached = [torch.cat([c, k]) for c, k in zip(latents[b], k_rope[b], strict=True)]
        for i in range(num_heads):
            w_uk, w_uv = heads(w["w_uk"], head_dim)[i], heads(w["w_uv"], v_dim)[i]
            q = [torch.cat([w_uk.T @ query[i][0], query[i][1]]) for query in queries]
            for t, o in enumerate(attend(q, cached, list(latents[b]), scale)):
                y[b, t] = y[b, t] + w["w_o"][:, i * v_dim : (i + 1) * v_dim] @ (w_uv @ o)
    return y
