"""The specification of every op in this package, in plain differentiable torch; slow but simple.

N rows, E experts, K of them per token, I input width, O output width, W hidden width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.cross_entropy import NOT_SCORED


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * w over the last dim, computed in at least float32, in the dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (w * normed.to(x.dtype)).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, for gate and up concatenated along the last dim: (..., 2W) -> (..., W)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
    """Multiply consecutive blocks of rows (N, I), counts[e] rows for expert e, by w (E, I, O): (N, O)."""
    blocks = rows.split(counts.tolist())
    return torch.cat([block @ w[e] for e, block in enumerate(blocks)])


def route_logits(
    logits: Tensor, *, top_k: int, num_devices: int = 1, max_devices: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the softmax of logits (..., E), the K experts of highest affinity on at most M devices, and their gates.

    Equal consecutive groups of experts are on a device; a token's devices are those of the highest affinities. Of equal
    affinities the first counts as the higher.
    """
    affinities = logits.float().softmax(-1)
    ranking = affinities.argsort(dim=-1, descending=True, stable=True)
    chosen = []
    for order in ranking.flatten(0, -2).tolist():
        devices = list(dict.fromkeys(expert * num_devices // len(order) for expert in order))[:max_devices]
        chosen.append([expert for expert in order if expert * num_devices // len(order) in devices][:top_k])
    experts = torch.tensor(chosen, dtype=torch.int64).view(*logits.shape[:-1], top_k)
    return affinities, experts, affinities.gather(-1, experts)


def sort_by_expert(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs (N,) in order of their experts (N,), the place of each pair in it, and the counts (E,)."""
    order = experts.argsort(stable=True)
    return order, order.argsort(), torch.bincount(experts, minlength=num_experts)


def gather_rows(x: Tensor, order: Tensor, top_k: int) -> Tensor:
    """Gather row `order[n] // top_k` of x (tokens, I) for every n: (N, I)."""
    return x[order // top_k]


def weighted_sum(rows: Tensor, gates: Tensor, order: Tensor) -> Tensor:
    """Sum rows (N, O) times their gates per token; rows[n] belongs to pair order[n] of gates (tokens, K)."""
    pairs = torch.zeros_like(rows).index_copy(0, order, rows)
    return (pairs.view(*gates.shape, rows.shape[1]) * gates[..., None]).sum(1)


def routed_experts(x: Tensor, experts: Tensor, gates: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Sum gates times w_down[e] swiglu(w_gate_up[e] x) over the experts e of each token x of (B, T, I)."""
    hidden = swiglu(torch.einsum("bti,btkio->btko", x, w_gate_up[experts]))
    return torch.einsum("btk,btkw,btkwi->bti", gates, hidden, w_down[experts])


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of x (B, T, H, R) by complex rotations (T, R / 2) or (B, T, R / 2)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide[..., 0::2], wide[..., 1::2]
    cos, sin = rotations.real.unsqueeze(-2), rotations.imag.unsqueeze(-2)
    rotated = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def rotary_attention(
    q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, rotations: Tensor, *, scale: float
) -> Tensor:
    """Attend causally; each head of keys and values serves several consecutive heads of the queries (B, T, H, .)."""
    heads, length = q_rope.shape[2], v.shape[1]
    k_nope, k_rope, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k_nope, rotate(k_rope, rotations), v))
    scores = torch.einsum("bthd,bshd->bhts", q_nope, k_nope)
    scores = scale * (scores + torch.einsum("bthr,bshr->bhts", rotate(q_rope, rotations), k_rope))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    return torch.einsum("bhts,bshv->bthv", scores.masked_fill(later, -torch.inf).softmax(-1), v)


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    c_kv: Tensor,
    k_rope: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    scales: Tensor | None = None,
) -> Tensor:
    """Attend from one query per row, (B, H, C) and (B, H, R), to the first tokens of the row's cache: (B, H, C).

    Latents c_kv (B, S, C), keys at first and values later, are times `scales` (B, S) if these are given; k_rope
    (B, S, R). A row of length 0 gives 0.
    """
    wide = torch.promote_types(q_latent.dtype, torch.float32)
    unseen = torch.arange(c_kv.shape[1], device=lengths.device) >= lengths[:, None]  # (B, S)
    latents = c_kv.to(wide) if scales is None else c_kv.to(wide) * scales[..., None]
    latents, k_rope = (x.masked_fill(unseen[..., None], 0) for x in (latents, k_rope.to(wide)))
    scores = torch.einsum("bhc,bsc->bhs", q_latent.to(wide), latents)
    scores = scale * (scores + torch.einsum("bhr,bsr->bhs", q_rope.to(wide), k_rope))
    weights = scores.masked_fill(unseen[:, None], -torch.inf).softmax(-1).masked_fill(unseen[:, None], 0)
    return torch.einsum("bhs,bsc->bhc", weights, latents).to(q_latent.dtype)


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return logsumexp(logits) - logits[target] over the last dim (..., V), in float32; 0 for targets NOT_SCORED."""
    wide, scored = logits.float(), targets != NOT_SCORED
    of_target = wide.gather(-1, targets.where(scored, 0)[..., None])[..., 0]
    return (wide.logsumexp(-1) - of_target).where(scored, 0)
