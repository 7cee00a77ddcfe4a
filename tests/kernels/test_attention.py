"""Causal attention against a loop over heads, queries and keys: values and the gradients of q, k and v."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.attention import SHORT, attention, causal_mask, rotary_attention
from tests import references
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT32_MODULE, FLOAT64, close, same_values_and_gradients

# B, T, S, H, G, Q, V
SIZES = {
    "one of everything": (1, 1, 1, 1, 1, 1, 1),
    "MHA": (2, 7, 7, 3, 3, 4, 4),
    "GQA": (1, 5, 5, 4, 2, 3, 3),
    "MQA": (2, 3, 3, 4, 1, 5, 5),
    "narrow values": (2, 7, 7, 2, 2, 6, 4),
    "wide values": (2, 3, 3, 2, 2, 3, 5),
    "one query behind a cache": (2, 1, 9, 4, 2, 3, 2),
    "some queries behind a cache": (1, 4, 9, 4, 2, 3, 5),
}


def looped(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Query t of T stands at position S - T + t and sees keys up to there; head i reads group i // (H / G)."""
    B, T, H, _ = q.shape
    S, G = k.shape[1], k.shape[2]
    out = torch.zeros(B, T, H, v.shape[-1], dtype=q.dtype)
    for b in range(B):
        for i in range(H):
            j = i // (H // G)
            for t in range(T):
                seen = range(S - T + t + 1)
                weights = references.softmax([scale * (q[b, t, i] @ k[b, s, j]) for s in seen])
                out[b, t, i] = sum(weight * v[b, s, j] for weight, s in zip(weights, seen, strict=True))
    return out


def inputs(sizes: tuple[int, ...]) -> dict[str, Tensor]:
    B, T, S, H, G, Q, V = sizes
    shapes = {"q": (B, T, H, Q), "k": (B, S, G, Q), "v": (B, S, G, V)}
    return {name: references.random(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_values_and_gradients_are_those_of_a_loop(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs(sizes).items()}
    own = references.twin(leaves)
    out = attention(*leaves.values(), scale=0.7, start=sizes[2] - sizes[1])
    assert out.dtype == dtype
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32_MODULE
    same_values_and_gradients(out, looped(*own.values(), scale=0.7), leaves, own, tolerance)


def test_a_sequence_in_two_parts_is_the_whole() -> None:
    q, k, v = (x.detach() for x in inputs(SIZES["GQA"]).values())
    first = attention(q[:, :2], k[:, :2], v[:, :2], scale=0.5)
    second = attention(q[:, 2:], k, v, scale=0.5, start=2)
    close(torch.cat((first, second), dim=1), attention(q, k, v, scale=0.5), FLOAT64)


def test_bfloat16_is_summed_in_float32() -> None:
    """Over 512 equal keys the weights are 1 / 512 each and values of 1 come back as 1: summed in bfloat16, which counts
    no further than 256 by ones, they would not."""
    q, k = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 512, 1, 4, dtype=torch.bfloat16)
    out = attention(q, k, torch.ones_like(k), scale=1.0, start=511)
    assert out.dtype == torch.bfloat16
    assert out.flatten().tolist() == [1.0] * 4


def test_the_mask_shows_each_query_what_is_not_later() -> None:
    cpu = torch.device("cpu")
    assert causal_mask(2, 1, cpu).tolist() == [[True, True, False], [True, True, True]]
    assert torch.equal(causal_mask(4, 0, cpu), torch.ones(4, 4, dtype=torch.bool).tril())


# ---- with rotations inside -------------------------------------------------------------------------------------------

# B, T, H, G, heads of rotated keys, D, R, V; lengths around the borders of blocks of 64 queries
ROTARY = {
    "one of everything": (1, 1, 1, 1, 1, 1, 2, 1),
    "MLA": (2, 65, 4, 4, 1, 5, 4, 3),
    "MLA, one block": (1, 64, 2, 2, 1, 16, 8, 16),
    "MLA, almost one block": (1, 63, 2, 2, 1, 16, 8, 16),
    "MHA": (2, 9, 3, 3, 3, 0, 6, 6),
    "GQA": (1, 130, 4, 2, 2, 0, 4, 4),
    "GQA, partly rotated": (2, 40, 4, 2, 2, 3, 2, 5),
    "MQA": (1, 17, 4, 1, 1, 0, 18, 18),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sizes", ROTARY.values(), ids=ROTARY.keys())
def test_rotated_heads_attend_as_specified(sizes: tuple[int, ...]) -> None:
    B, T, H, G, J, D, R, V = sizes
    shapes = [(H, D), (H, R), (G, D), (J, R), (G, V)]
    parts = [normal(B, T, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    rotations = torch.polar(torch.full((T, R // 2), 1.2), normal(T, R // 2, seed=7))
    if D == 0:
        nothing = parts[0], parts[2]
        agrees(
            lambda q, k, v: rotary_attention(nothing[0], q, nothing[1], k, v, rotations, scale=0.4),
            lambda q, k, v: reference.rotary_attention(nothing[0], q, nothing[1], k, v, rotations, scale=0.4),
            *(parts[1], parts[3], parts[4]),
            tolerance=FLOAT32_MODULE,
        )
    else:
        agrees(
            lambda *parts: rotary_attention(*parts, rotations, scale=0.4),
            lambda *parts: reference.rotary_attention(*parts, rotations, scale=0.4),
            *parts,
            tolerance=FLOAT32_MODULE,
        )


def test_the_specification_is_a_loop_over_rotated_heads() -> None:
    B, T, H, G, D, R, V = 1, 4, 4, 2, 3, 2, 5
    q, k = references.random(B, T, H, D + R, seed=1).detach(), references.random(B, T, G, D + R, seed=2).detach()
    v, angles = references.random(B, T, G, V, seed=3).detach(), references.random(T, R // 2, seed=4).detach()

    def turned(x: Tensor) -> Tensor:
        cos, sin = angles.cos()[:, None, 0], angles.sin()[:, None, 0]
        first, second = x[..., D], x[..., D + 1]
        pair = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
        return torch.cat((x[..., :D], pair), dim=-1)

    parts = (q[..., :D], q[..., D:], k[..., :D], k[..., D:], v)
    got = reference.rotary_attention(*parts, torch.polar(torch.ones_like(angles), angles), scale=0.7)
    close(got, looped(turned(q), turned(k), v, scale=0.7), FLOAT64)


@pytest.mark.usefixtures("kernels")
def test_long_sequences_and_rotations_of_each_row_give_the_same() -> None:
    """Both go through torch's own attention, whatever the kernels."""
    parts = [normal(2, SHORT + 1, 2, 4, seed=seed) for seed in range(5)]
    rotations = torch.polar(torch.ones(SHORT + 1, 2), normal(SHORT + 1, 2, seed=7))
    whole = rotary_attention(*parts, rotations, scale=0.4)
    start = rotary_attention(*(x[:, :SHORT] for x in parts), rotations[:SHORT], scale=0.4)
    close(whole[:, :SHORT], start, FLOAT32_MODULE)
    each = rotary_attention(*parts, rotations.expand(2, -1, -1), scale=0.4)
    close(each, whole, FLOAT32_MODULE)
