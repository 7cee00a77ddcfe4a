"""Router, balance losses, dropping and experts."""

import math

import torch
from torch import Tensor

from tests.references.basics import Weights, halves, softmax, swiglu


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
