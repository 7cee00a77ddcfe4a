"""The routed experts in Triton beside their specification."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from dsv2.inference.precision import OPS
from dsv2.kernels import reference
from dsv2.kernels.choice import using
from dsv2.kernels.experts import routed_experts
from dsv2.kernels.triton import experts as kernels
from dsv2.kernels.triton import grouped
from dsv2.models.moe import MoE
from tests.references.fences import DEVICE, fenced, reserved
from tests.references.kernels import normal
from tests.references.moe_layers import LAYERS, SIZES, same_layer
from tests.references.tolerances import FLOAT32_MODULE, close
from tests.references.triton import LAYOUTS, agrees, traces

pytestmark = pytest.mark.usefixtures("triton_ops")

HALF = 5e-3  # float16: roundings of 2^-11 of what is kept, of the hidden row, and of every row before it is summed


def compare(chosen: Tensor, num_experts: int, dim: int, width: int, *, half: bool = False, layouts: int = 1) -> None:
    chosen = chosen.to(DEVICE)
    inputs = (
        normal(*chosen.shape[:2], dim),
        normal(*chosen.shape, seed=1),
        normal(num_experts, dim, 2 * width, seed=2) / dim**0.5,
        normal(num_experts, width, dim, seed=3) / width**0.5,
    )
    agrees(
        lambda x, gates, w_gate_up, w_down: routed_experts(x, fenced(chosen), gates, w_gate_up, w_down),
        lambda x, gates, w_gate_up, w_down: reference.routed_experts(x, chosen, gates, w_gate_up, w_down),
        *(x.half() if half else x for x in inputs),
        tolerance=HALF if half else FLOAT32_MODULE,
        layouts=LAYOUTS[:layouts],
    )


def choices(batch: int, length: int, top_k: int, num_experts: int) -> Tensor:
    """Different experts for each token."""
    generator = torch.Generator().manual_seed(4)
    return torch.rand(batch, length, num_experts, generator=generator).argsort(-1)[..., :top_k]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "top_k", "num_experts", "dim", "width"),
    [(1, 1, 1, 1, 1, 1), (2, 5, 2, 3, 7, 5), (1, 9, 3, 5, 70, 70), (1, 1, 6, 8, 16, 40)],
)
def test_values_and_gradients_are_those_of_the_specification(
    batch: int, length: int, top_k: int, num_experts: int, dim: int, width: int, half: bool
) -> None:
    """Widths below a block, over one, and multiples of none; experts without tokens."""
    compare(choices(batch, length, top_k, num_experts), num_experts, dim, width, half=half)


def test_gradients_may_arrive_in_any_layout() -> None:
    compare(choices(2, 3, 2, 4), 4, 7, 5, layouts=len(LAYOUTS))


@pytest.mark.parametrize("tokens", [63, 64, 65, 150])
def test_one_expert_may_get_every_token_and_the_others_none(tokens: int) -> None:
    """Its rows fill a block, almost, exactly or by one too many."""
    compare(torch.full((1, tokens, 1), 2), 4, 8, 6)


def test_every_expert_may_have_a_block_of_its_own_that_is_not_full() -> None:
    """As many tiles as the table has places for: 1, 65, 1 and 1 rows."""
    compare(torch.tensor([0, *[1] * 65, 2, 3]).view(1, -1, 1), 4, 8, 6)


def test_no_tokens_are_enough() -> None:
    compare(torch.zeros(1, 0, 2, dtype=torch.int64), 3, 8, 6)


def test_gates_keep_float32_beside_half_precision() -> None:
    chosen = choices(1, 5, 2, 3).to(DEVICE)
    x, w_gate_up, w_down = (normal(*shape).half().to(DEVICE) for shape in ((1, 5, 8), (3, 8, 12), (3, 6, 8)))
    gates = normal(1, 5, 2, seed=1).to(DEVICE).requires_grad_()
    out = routed_experts(x, chosen, gates, w_gate_up, w_down)
    assert out.dtype == torch.float16
    close(out.float(), reference.routed_experts(x.float(), chosen, gates, w_gate_up.float(), w_down.float()), HALF)
    out.sum().backward()
    assert gates.grad.dtype == torch.float32


def test_bfloat16_is_multiplied_in_float32_by_the_interpreter() -> None:
    """Which would be wrong otherwise; it also cuts off bits where a GPU rounds them, hence twice the tolerance."""
    chosen = choices(1, 5, 2, 3).to(DEVICE)
    inputs = [normal(1, 5, 20), normal(1, 5, 2, seed=1), normal(3, 20, 12, seed=2), normal(3, 6, 20, seed=3)]
    x, gates, w_gate_up, w_down = (part.bfloat16().to(DEVICE) for part in inputs)
    exact = reference.routed_experts(x.float(), chosen, gates.float(), w_gate_up.float(), w_down.float())
    close(routed_experts(x, chosen, gates, w_gate_up, w_down).float(), exact, 2**-6)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2, 3), (0, 1, 2), (0, 1, 3)])
def test_only_gradients_that_are_asked_for_are_computed(frozen: tuple[int, ...]) -> None:
    chosen = choices(1, 4, 2, 3).to(DEVICE)
    agrees(
        lambda x, gates, w_gate_up, w_down: routed_experts(x, chosen, gates, w_gate_up, w_down),
        lambda x, gates, w_gate_up, w_down: reference.routed_experts(x, chosen, gates, w_gate_up, w_down),
        *(normal(1, 4, 8), normal(1, 4, 2, seed=1), normal(3, 8, 12, seed=2), normal(3, 6, 8, seed=3)),
        tolerance=FLOAT32_MODULE,
        layouts=LAYOUTS[:1],
        frozen=frozen,
    )


def test_nothing_is_kept_without_a_gradient() -> None:
    x, gates = normal(4, 8).to(DEVICE), normal(4, 1).to(DEVICE)
    places = reference.sort_by_expert(torch.tensor([0, 1, 1, 0], device=DEVICE), 2)
    weights = normal(2, 8, 12).to(DEVICE), normal(2, 6, 8).to(DEVICE)
    for differentiable, rows in ((False, 0), (True, 4)):
        _, before = torch.ops.dsv2_triton.experts(x, gates, *places, *weights, differentiable)
        assert before.shape == (rows, 12)


def test_results_repeat() -> None:
    chosen = choices(1, 9, 3, 5).to(DEVICE)
    results = []
    for _ in range(2):
        leaves = [normal(1, 9, 8), normal(1, 9, 3, seed=1), normal(5, 8, 12, seed=2), normal(5, 6, 8, seed=3)]
        leaves = [fenced(leaf).requires_grad_() for leaf in leaves]
        x, gates, *weights = leaves
        out = routed_experts(x, chosen, gates, *weights)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_offsets_beyond_int32_are_computed_in_int64() -> None:
    """Of an expert's matrix and of a row, in tensors of 2^31 elements whose memory is reserved and hardly used."""
    dim, width, first = 16, 16, 2**26
    expert = 2**31 // (dim * width)
    rows = slice(first, first + 2)
    tiles = torch.tensor([[expert, *(rows.start, rows.stop)]], dtype=torch.int32, device=DEVICE)
    token_of, gate_of = reserved(rows.stop, dtype=torch.int64), reserved(rows.stop)
    w_gate_up = reserved(expert // 2 + 1, dim, 2 * width, dtype=torch.float16)
    w_down = reserved(expert + 1, width, dim, dtype=torch.float16)
    before, grad_before = (reserved(rows.stop, 2 * width, dtype=torch.float16) for _ in range(2))
    hidden, gate_parts = reserved(rows.stop, width, dtype=torch.float16), reserved(rows.stop, 1)
    x, grad = normal(3, dim).half().to(DEVICE), normal(3, dim, seed=1).half().to(DEVICE)
    token_of[rows], gate_of[rows] = torch.tensor([2, 1]), torch.tensor([0.5, 2.0])
    up, down = normal(dim, 2 * width, seed=2).half().to(DEVICE), normal(width, dim, seed=3).half().to(DEVICE)
    w_gate_up[-1], w_down[-1] = up, down

    launch = grouped.blocks(x.dtype, x.device, shared=True).launch
    half = torch.tensor([[expert // 2, rows.start, rows.stop]], dtype=torch.int32, device=DEVICE)
    kernels._gate_up[(1,)](*(x, token_of, gate_of, w_gate_up, half, before, hidden, dim, width, 1), KEEP=True, **launch)
    active = (x[[2, 1]].float() @ up.float()).requires_grad_()
    scaled = reference.swiglu(active) * gate_of[rows, None]
    close(before[rows].float(), active, HALF)
    close(hidden[rows].float(), scaled, HALF)
    kernels._down_backward[(1,)](
        *(grad, token_of, gate_of, w_down, before, tiles, grad_before, hidden, gate_parts, dim, width, 1), **launch
    )
    (scaled @ down.float() * grad[[2, 1]].float()).sum().backward()
    close(grad_before[rows].float(), active.grad, HALF)


@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS.keys())
def test_layers_are_the_same_as_in_plain_torch(config: MoE.Config) -> None:
    same_layer(config, "triton", 5, DEVICE)


def test_a_layer_with_products_in_bfloat16_takes_the_op_too() -> None:
    layer = MoE.Config(**SIZES, top_k=3, num_shared=1).build(16, OPS["bf16"]).to(DEVICE)
    for number, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    u = normal(2, 5, 16).to(DEVICE)
    with mock.patch.object(layer.experts, "forward", side_effect=AssertionError("rows were dispatched")):
        out, _ = layer(u)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
    with using("torch"):
        expected, _ = layer(u)
    close(
        out.float(), expected.float(), 2**-5
    )  # the interpreter cuts bits off where torch rounds, at each of five casts


def test_shapes_can_be_traced_without_data() -> None:
    places = reference.sort_by_expert(torch.tensor([0, 1, 1, 0]), 2)
    leaves = [part.requires_grad_() for part in (normal(4, 8), normal(4, 1), normal(2, 8, 12), normal(2, 6, 8))]
    x, gates, *weights = leaves
    traces(torch.ops.dsv2_triton.experts, x, gates, *places, *weights, True)
