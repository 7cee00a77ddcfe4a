"""The layers that DeepSeekMoE is compared with, as plain loops in float64; nothing here imports dsv2.

S = B T tokens of the batch in order, E experts. GShard: arXiv 2006.16668, Algorithm 1, by its line numbers. Switch:
arXiv 2101.03961, section 2. Hash: splitmix64 in integers of any size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tests import references

Weights = references.Weights


class Routed(NamedTuple):
    experts: Tensor  # (B, T, K), best first
    gates: Tensor  # (B, T, K), with gradients to the affinities
    dropped: Tensor  # (B, T, K) bool
    loss: Tensor  # the auxiliary loss of the batch, before its coefficient


def gshard(s: Tensor, capacity_factor: float, drawn: Tensor) -> Routed:
    """Algorithm 1 over one group, the batch; affinities s (B, T, E) and the numbers of line 17, drawn (B, T).

    The loss is E^2 times that of line 13, so that balance gives 1.
    """
    B, T, E = s.shape
    S = B * T
    C = math.floor(capacity_factor * 2 * S / E)
    g = s.reshape(S, E)
    m = [sum(g[t, e] for t in range(S)) / S for e in range(E)]  # line 3
    c = [0] * E  # line 1
    experts, gates = torch.zeros(S, 2, dtype=torch.int64), []
    dropped = torch.ones(S, 2, dtype=torch.bool)
    for t in range(S):
        e1, e2 = sorted(range(E), key=lambda e, t=t: -g[t, e].item())[:2]  # line 5
        experts[t] = torch.tensor([e1, e2])
        gates.append(torch.stack([g[t, e1] / (g[t, e1] + g[t, e2]), g[t, e2] / (g[t, e1] + g[t, e2])]))  # lines 6, 16
        if c[e1] < C:  # line 8
            dropped[t, 0] = False
        c[e1] += 1  # line 11
    loss = sum(c[e] / S * m[e] for e in range(E)) / E * E**2  # line 13: only first choices are in c yet
    for t in range(S):
        e2 = int(experts[t, 1])
        if c[e2] < C and 2 * gates[t][1].item() > drawn.flatten()[t].item():  # line 19
            dropped[t, 1] = False
        c[e2] += 1  # line 22
    return Routed(experts.view(B, T, 2), torch.stack(gates).view(B, T, 2), dropped.view(B, T, 2), loss)


def switch(s: Tensor, capacity_factor: float) -> Routed:
    """The best expert with gate p_i (2); room for S / E * capacity_factor tokens (3); N sum_i f_i P_i (4-6)."""
    B, T, E = s.shape
    S = B * T
    p = s.reshape(S, E)
    room, taken = math.floor(S / E * capacity_factor), [0] * E
    experts, gates, dropped = torch.zeros(S, 1, dtype=torch.int64), [], torch.zeros(S, 1, dtype=torch.bool)
    for t in range(S):
        best = max(range(E), key=lambda e, t=t: p[t, e].item())
        experts[t, 0], dropped[t, 0] = best, taken[best] >= room
        gates.append(p[t, best : best + 1])
        taken[best] += 1
    f = [sum(int(experts[t, 0]) == e for t in range(S)) / S for e in range(E)]  # (5)
    P = [sum(p[t, e] for t in range(S)) / S for e in range(E)]  # (6)
    loss = E * sum(f_e * P_e for f_e, P_e in zip(f, P, strict=True))  # (4)
    return Routed(experts.view(B, T, 1), torch.stack(gates).view(B, T, 1), dropped.view(B, T, 1), loss)


def jittered(u: Tensor, drawn: Tensor, jitter: float) -> Tensor:
    """Every number of u times its own draw from 1 - jitter to 1 + jitter; drawn from 0 to 1, of u's shape."""
    factors = [1 - jitter + 2 * jitter * draw for draw in drawn.flatten().tolist()]
    return torch.stack([x * factor for x, factor in zip(u.flatten(), factors, strict=True)]).reshape(u.shape)


def random_hash(token: int, seed: int, num_experts: int) -> int:
    """The upper 63 bits of the token-th number of splitmix64 from `seed`, modulo the experts."""
    whole = 2**64
    state = seed
    for _ in range(token + 1):
        state = (state + 0x9E3779B97F4A7C15) % whole
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % whole
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % whole
    return ((z ^ (z >> 31)) >> 1) % num_experts


def moe(u: Tensor, w: Weights, *, experts: Tensor, gates: Tensor, dropped: Tensor | None, expert_dim: int) -> Tensor:
    """Shared experts, plus g_k FFN_k(u) over the chosen ones that are not dropped; no residual."""
    routed_gate, routed_up = references.halves(w["experts.w_gate_up"].transpose(1, 2), dim=1)
    y = []
    for b in range(u.shape[0]):
        for t in range(u.shape[1]):
            token = torch.zeros_like(u[b, t])
            if "shared.w_gate_up" in w:
                gate, up = references.halves(w["shared.w_gate_up"])
                token = token + references.swiglu(u[b, t], gate, up, w["shared.w_down"])
            for k, i in enumerate(experts[b, t].tolist()):
                if dropped is None or not dropped[b, t, k]:
                    expert = references.swiglu(u[b, t], routed_gate[i], routed_up[i], w["experts.w_down"][i].T)
                    token = token + gates[b, t, k] * expert
            y.append(token)
    return torch.stack(y).reshape(u.shape)
