"""Flash attention in Triton beside its specification."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.attention import rotary_attention
from dsv2.kernels.triton import attention, device
from tests.references.fences import DEVICE, fenced
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32_MODULE, close
from tests.references.triton import LAYOUTS, agrees, traces

pytestmark = pytest.mark.usefixtures("triton_ops")

HALF = {torch.float16: 4e-3, torch.bfloat16: 4e-2}  # weights and outputs rounded to 2^-11 and 2^-8, in gradients twice

# B, T, H, G, J, D, R, V; the blocks of float32 are 16 and 32 tokens
SIZES = {
    "one of everything": (1, 1, 1, 1, 1, 1, 2, 1),
    "MLA": (2, 35, 2, 2, 1, 5, 4, 3),
    "MLA, whole blocks": (1, 32, 2, 2, 1, 16, 16, 32),
    "MLA, a token less": (1, 31, 1, 1, 1, 17, 2, 33),
    "MHA": (1, 33, 3, 3, 3, 0, 6, 6),
    "GQA": (1, 17, 4, 2, 2, 0, 4, 5),
    "GQA, partly rotated": (1, 16, 4, 2, 2, 3, 2, 5),
    "MQA": (1, 18, 4, 1, 1, 0, 18, 18),
    "keys shared by some heads": (1, 9, 4, 4, 2, 3, 2, 5),
    "no sequence": (0, 5, 2, 2, 1, 3, 2, 5),
    "no tokens": (1, 0, 2, 2, 1, 3, 2, 5),
    "V2's widths": (1, 19, 1, 1, 1, 128, 64, 128),
}


def parts(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    B, T, H, G, J, D, R, V = sizes
    return [normal(B, T, *s, seed=i).to(dtype) for i, s in enumerate([(H, D), (H, R), (G, D), (J, R), (G, V)])]


def rotations(*shape: int) -> Tensor:
    return torch.polar(torch.full(shape, 1.2), normal(*shape, seed=7)).to(DEVICE)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_values_and_gradients_are_those_of_the_specification(sizes: tuple[int, ...]) -> None:
    turns = rotations(sizes[1], sizes[6] // 2)
    agrees(
        lambda *x: rotary_attention(*x, turns, scale=0.4),
        lambda *x: reference.rotary_attention(*x, turns, scale=0.4),
        *parts(sizes),
        tolerance=FLOAT32_MODULE,
        layouts=LAYOUTS if sizes[1] < 16 else LAYOUTS[:1],
    )


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("length", [1, 130])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, length: int) -> None:
    """Its blocks are 128 and 64 or 32 tokens: two programs, whose keys need no mask, a whole one and a part of one."""
    turns = rotations(length, 2)
    agrees(
        lambda *x: rotary_attention(*x, turns, scale=0.4),
        lambda *x: reference.rotary_attention(*x, turns, scale=0.4),
        *parts((1, length, 2, 2, 1, 5, 4, 3), dtype),
        tolerance=HALF[dtype],
        layouts=LAYOUTS[:1],
    )


def test_rows_may_have_rotations_of_their_own() -> None:
    turns = rotations(2, 5, 2)
    agrees(
        lambda *x: rotary_attention(*x, turns, scale=0.4),
        lambda *x: reference.rotary_attention(*x, turns, scale=0.4),
        *parts((2, 5, 2, 2, 1, 3, 4, 5)),
        tolerance=FLOAT32_MODULE,
        layouts=LAYOUTS[:1],
    )


def test_inputs_may_be_parts_of_wider_tensors() -> None:
    """GQA splits its heads in a part with RoPE and one without; a key may be expanded over heads."""
    turns = rotations(7, 2)

    def split(attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        q_parts, k_parts = q.transpose(1, 2).split([3, 4], -1), k.split([3, 4], -1)
        values = v[:, :, :1].expand(-1, -1, 2, -1)
        return attend(q_parts[0], q_parts[1], k_parts[0], k_parts[1], values, turns, scale=0.4)

    agrees(
        lambda *x: split(rotary_attention, *x),
        lambda *x: split(reference.rotary_attention, *x),
        *(normal(2, 4, 7, 7), normal(2, 7, 2, 7, seed=1), normal(2, 7, 3, 5, seed=2)),
        tolerance=FLOAT32_MODULE,
        layouts=LAYOUTS[:1],
    )


def test_scores_beyond_what_an_exponential_holds_are_as_good() -> None:
    turns = rotations(20, 2)
    agrees(
        lambda *x: rotary_attention(*x, turns, scale=100.0),
        lambda *x: reference.rotary_attention(*x, turns, scale=100.0),
        *parts((1, 20, 2, 2, 1, 5, 4, 3)),
        layouts=LAYOUTS[:1],
        tolerance=1e-3,  # scores of 1,000 are rounded to 6e-5, and so are the exponents
    )


def test_no_token_reads_a_later_one() -> None:
    inputs = [x.to(DEVICE) for x in parts((1, 40, 1, 1, 1, 5, 4, 3))]
    before = rotary_attention(*inputs, rotations(40, 2), scale=0.4)
    for x in inputs[2:]:
        x[:, 20:] = 1e4
    after = rotary_attention(*inputs, rotations(40, 2), scale=0.4)
    assert torch.equal(after[:, :20], before[:, :20])


def test_results_repeat() -> None:
    """The key that heads share has a gradient of several programs, and is summed in one order."""
    results = []
    for _ in range(2):
        leaves = [fenced(x).requires_grad_() for x in parts((1, 20, 4, 4, 1, 5, 4, 3))]
        out = rotary_attention(*leaves, rotations(20, 2), scale=0.4)
        (out * normal(*out.shape, seed=8).to(DEVICE)).sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_meet_the_diagonal_at_their_borders(
    dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys before a block of queries are attended to without a mask, so no block of keys may reach into it."""
    monkeypatch.setattr(device, "capability", lambda _: capability)
    for width in (16, 128, 256):
        for kernel in ("forward", "queries", "keys"):
            sizes = attention.blocks(kernel, torch.empty(1, width, dtype=dtype), width, 64)
            own, other = (sizes["BLOCK_Q"], sizes["BLOCK_K"])[:: -1 if kernel == "keys" else 1]
            assert own % other == 0
            assert other >= 16


def test_a_gradient_of_the_log_sums_is_none() -> None:
    out, log_sums = torch.ops.dsv2_triton.attention(
        *(x.to(DEVICE).requires_grad_() for x in parts((1, 3, 1, 1, 1, 2, 2, 2))), 0.4
    )
    assert out.requires_grad
    assert not log_sums.requires_grad


def test_log_sums_are_to_base_2() -> None:
    inputs = [x.to(DEVICE) for x in parts((1, 3, 1, 1, 1, 2, 2, 2))]
    log_sums = torch.ops.dsv2_triton.attention(*inputs, 0.4)[1]
    q, k = (torch.cat(pair, -1)[0, :, 0] for pair in ((inputs[0], inputs[1]), (inputs[2], inputs[3])))
    expected = (0.4 * q @ k.T).masked_fill(torch.ones(3, 3, device=DEVICE).triu(1).bool(), -torch.inf)
    close(log_sums[0, 0], expected.logsumexp(1) / torch.log(torch.tensor(2.0)), FLOAT32_MODULE)


def test_shapes_can_be_traced_without_data() -> None:
    inputs = parts((1, 3, 2, 2, 1, 2, 2, 3))
    traces(torch.ops.dsv2_triton.attention, *(x.requires_grad_() for x in inputs), 0.4)
