"""Every equation of the model as plain loops in float64: the specification that the implementation is held to.

B sequences, T queries, S keys, d model width, H heads, G key-value groups, E routed experts, K chosen per token,
D devices (equal groups of experts), M devices per token, r latent width, q query latent width.
Equations are numbered as in the DeepSeek-V2 report (2405.04434). Nothing here imports dsv2; nothing here is fast.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LATENT_EPS = 1e-6  # of the two latent norms, whatever the model's own epsilon

Weights = Mapping[str, Tensor]  # by parameter name, every matrix [out, in] unless said otherwise


# Norm, feed-forward, loss


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """x_i w_i / sqrt(mean_j x_j^2 + eps), each row of the last axis alone; x (..., d)."""
    rows = [row / torch.sqrt(sum(value * value for value in row) / len(row) + eps) * w for row in x.reshape(-1, len(w))]
    return torch.stack(rows).reshape(x.shape)


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """W_down (silu(W_gate x) * W_up x) with silu(z) = z / (1 + e^-z); x (d,)."""
    z = w_gate @ x
    return w_down @ (z / (1 + torch.exp(-z)) * (w_up @ x))


def halves(w_gate_up: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """W_gate and W_up of the one matrix that holds both, gate first."""
    width = w_gate_up.shape[dim] // 2
    return w_gate_up.narrow(dim, 0, width), w_gate_up.narrow(dim, width, width)


def softmax(scores: list[Tensor]) -> list[Tensor]:
    """e^s_i / sum_j e^s_j, shifted by the largest."""
    highest = max(score.item() for score in scores)
    powers = [torch.exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over tokens of -log softmax(logits)[target]; logits (B, T, V), targets (B, T)."""
    losses = []
    for b in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            losses.append(-torch.log(softmax(list(logits[b, t]))[int(targets[b, t])]))
    return sum(losses) / len(losses)


def block(x: Tensor, norms: tuple[Tensor, Tensor], eps: float, attention: Callable, ffn: Callable) -> Tensor:
    """h = x + attention(norm(x)), then h + ffn(norm(h)): pre-norm, and each residual skips its own norm."""
    h = x + attention(rms_norm(x, norms[0], eps))
    return h + ffn(rms_norm(h, norms[1], eps))


# Router, balance, dropping, experts


def affinities(u: Tensor, centroids: Tensor) -> Tensor:
    """s_i = softmax_i(u . e_i) over all E centroids (Eq. 22); u (B, T, d), centroids (E, d) -> (B, T, E)."""
    sequences = []
    for sequence in u:
        sequences.append(torch.stack([torch.stack(softmax([e @ token for e in centroids])) for token in sequence]))
    return torch.stack(sequences)


def route(s: Tensor, top_k: int, num_devices: int = 1, max_devices: int | None = None) -> tuple[Tensor, Tensor]:
    """The K best experts of the M devices whose best expert is best (2.2.2), best first, and their s (Eq. 21)."""
    B, T, E = s.shape
    group = E // num_devices
    experts = torch.zeros(B, T, top_k, dtype=torch.int64)
    for b in range(B):
        for t in range(T):
            token = s[b, t].tolist()
            best = [max(token[j * group : (j + 1) * group]) for j in range(num_devices)]
            devices = sorted(range(num_devices), key=lambda j: -best[j])[: max_devices or num_devices]
            allowed = [i for i in range(E) if i // group in devices]
            experts[b, t] = torch.tensor(sorted(allowed, key=lambda i: -token[i])[:top_k])
    return experts, gates(s, experts)


def gates(s: Tensor, experts: Tensor) -> Tensor:
    """g = s of each chosen expert, not renormalised (Eq. 21); (B, T, E), (B, T, K) -> (B, T, K)."""
    sequences = []
    for b in range(experts.shape[0]):
        tokens = [torch.stack([s[b, t, i] for i in experts[b, t].tolist()]) for t in range(experts.shape[1])]
        sequences.append(torch.stack(tokens))
    return torch.stack(sequences)


def frequencies(experts: Tensor, num_experts: int) -> list[float]:
    """f_i = E / (K T) * (tokens that chose i) (Eq. 24); experts (T, K) of one sequence."""
    T, K = experts.shape
    chosen = [sum(i in token for token in experts.tolist()) for i in range(num_experts)]
    return [num_experts / (K * T) * count for count in chosen]


def mean_affinities(s: Tensor) -> list[Tensor]:
    """P_i = mean over the T tokens of s_i (Eq. 25); s (T, E) of one sequence."""
    return [sum(token[i] for token in s) / len(s) for i in range(s.shape[1])]


def expert_loss(s: Tensor, experts: Tensor) -> Tensor:
    """sum_i f_i P_i (Eq. 23-25), a sequence at a time, then the mean over sequences; gradients through P alone."""
    losses = []
    for b in range(len(s)):
        f, P = frequencies(experts[b], s.shape[2]), mean_affinities(s[b])
        losses.append(sum(f_i * P_i for f_i, P_i in zip(f, P, strict=True)))
    return sum(losses) / len(losses)


def device_loss(s: Tensor, experts: Tensor, num_devices: int) -> Tensor:
    """sum_j f'_j P'_j with f' the mean of f and P' the sum of P over a device's experts (Eq. 26-28)."""
    group = s.shape[2] // num_devices
    losses = []
    for b in range(len(s)):
        f, P = frequencies(experts[b], s.shape[2]), mean_affinities(s[b])
        of = [range(j * group, (j + 1) * group) for j in range(num_devices)]
        losses.append(sum(sum(f[i] for i in device) / group * sum(P[i] for i in device) for device in of))
    return sum(losses) / len(losses)


def communication_loss(s: Tensor, experts: Tensor, num_devices: int, max_devices: int | None = None) -> Tensor:
    """sum_j f''_j P''_j, f''_j = D / (M T) * (tokens sent to j, each once) (Eq. 29-31); M = min(D, K) unless given."""
    B, T, K = experts.shape
    group = s.shape[2] // num_devices
    M = max_devices or min(num_devices, K)
    losses = []
    for b in range(B):
        P = mean_affinities(s[b])
        for j in range(num_devices):
            sent = sum(any(i // group == j for i in token) for token in experts[b].tolist())
            losses.append(num_devices / (M * T) * sent * sum(P[j * group : (j + 1) * group]))
    return sum(losses) / B


def drop(s: Tensor, experts: Tensor, num_devices: int, capacity_factor: float, exempt: Tensor | None = None) -> Tensor:
    """True where a pair is over its device's budget (2.2.4): exempt pairs are seated first, then by s, ties to the
    earlier pair. The budget is floor(capacity_factor B T K / D) pairs. (B, T, E), (B, T, K), (B,) -> (B, T, K).
    """
    B, T, K = experts.shape
    group = s.shape[2] // num_devices
    budget = math.floor(capacity_factor * B * T * K / num_devices)
    dropped = torch.zeros(B, T, K, dtype=torch.bool)
    for j in range(num_devices):
        pairs = [(b, t, k) for b in range(B) for t in range(T) for k in range(K) if experts[b, t, k] // group == j]
        protected = [pair for pair in pairs if exempt is not None and exempt[pair[0]]]
        others = [pair for pair in pairs if pair not in protected]
        others.sort(key=lambda pair: -s[pair[0], pair[1], experts[pair]].item())  # stable: ties stay in token order
        for pair in others[max(0, budget - len(protected)) :]:
            dropped[pair] = True
    return dropped


def moe(
    u: Tensor, w: Weights, *, experts: Tensor, expert_dim: int, scaling: float = 1.0, dropped: Tensor | None = None
) -> Tensor:
    """sum_i FFN_s,i(u) + scaling sum_k g_k FFN_r,k(u), no residual (Eq. 20); a dropped pair adds nothing.

    Routed weights are (E, d, 2 width), gate columns before up columns, and (E, width, d), for rows @ w[e]. Shared
    experts lie side by side in one SwiGLU (2 N_s width, d): every expert's gate rows, then every expert's up rows.
    """
    g = gates(affinities(u, w["router.w"]), experts)
    routed_gate, routed_up = halves(w["experts.w_gate_up"].transpose(1, 2), dim=1)
    shared_gate, shared_up = halves(w["shared.w_gate_up"]) if "shared.w_gate_up" in w else (u[:0, 0], u[:0, 0])
    num_shared = len(shared_gate) // expert_dim
    y = []
    for b in range(u.shape[0]):
        for t in range(u.shape[1]):
            token = torch.zeros_like(u[b, t])
            for i in range(num_shared):
                own = slice(i * expert_dim, (i + 1) * expert_dim)
                token = token + swiglu(u[b, t], shared_gate[own], shared_up[own], w["shared.w_down"][:, own])
            for k, i in enumerate(experts[b, t].tolist()):
                if dropped is None or not dropped[b, t, k]:
                    expert = swiglu(u[b, t], routed_gate[i], routed_up[i], w["experts.w_down"][i].T)
                    token = token + scaling * g[b, t, k] * expert
            y.append(token)
    return torch.stack(y).reshape(u.shape)


# Positions


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


# Both sides of a comparison


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every matrix normal with variance 1 / its last axis, every vector 1 +- 0.3: no weight is invisible."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = 1 + 0.3 * values if parameter.dim() == 1 else values / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(values)
    return module


def random(*shape: int, seed: int) -> Tensor:
    """Normal float64 numbers that ask for a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def twin(leaves: Weights) -> dict[str, Tensor]:
    """The same values in float64 as leaves of their own, for the reference to differentiate."""
    return {name: leaf.detach().double().clone().requires_grad_() for name, leaf in leaves.items()}


def remembered(module: torch.nn.Module) -> dict[str, str]:
    """All that a module and its children hold, attributes that are no parameters included; compare before and after."""
    held = {
        f"{name}.{key}": repr(value) for name, child in module.named_modules() for key, value in vars(child).items()
    }
    return held | {name: repr(value.tolist()) for name, value in module.state_dict().items()}
