"""Routed experts against one SwiGLU after another: values and every gradient, experts without rows included."""

import pytest
import torch

from dsv2.models.moe.experts import Experts
from dsv2.models.ops import PLAIN
from tests import references
from tests.references.tolerances import FLOAT32_MODULE, FLOAT64, same_values_and_gradients


def looped(rows: torch.Tensor, counts: list[int], w: dict[str, torch.Tensor]) -> torch.Tensor:
    """The network of expert e on its counts[e] rows; weights are applied as row @ w[e]."""
    gate, up = references.halves(w["w_gate_up"].transpose(1, 2), dim=1)
    experts = [expert for expert, count in enumerate(counts) for _ in range(count)]
    outputs = [
        references.swiglu(row, gate[expert], up[expert], w["w_down"][expert].T)
        for row, expert in zip(rows, experts, strict=True)
    ]
    return torch.stack(outputs)


@pytest.mark.parametrize("counts", [[4], [0, 3, 0, 5], [1, 1, 1], [0, 0, 2]])
@pytest.mark.parametrize(("dim", "width"), [(1, 1), (5, 3), (4, 8)])
def test_each_row_passes_its_own_expert(counts: list[int], dim: int, width: int) -> None:
    experts = references.randomise(Experts(len(counts), dim, width, PLAIN).double(), seed=1)
    leaves = {"rows": references.random(sum(counts), dim, seed=2), **dict(experts.named_parameters())}
    own = references.twin(leaves)
    y = experts(leaves["rows"], torch.tensor(counts))
    same_values_and_gradients(y, looped(own["rows"], counts, own), leaves, own, FLOAT64)


@pytest.mark.parametrize(("dim", "width"), [(8, 12), (7, 5)])
def test_float32_is_as_close_as_it_can_be(dim: int, width: int) -> None:
    """8 and 12 are multiples of 16 bytes, for which torch has a grouped product; 7 and 5 are not."""
    counts = [0, 5, 2, 0]
    experts = references.randomise(Experts(4, dim, width, PLAIN), seed=3)
    rows = references.random(7, dim, seed=4).detach().float().requires_grad_()
    leaves = {"rows": rows, **dict(experts.named_parameters())}
    own = references.twin(leaves)
    y = experts(rows, torch.tensor(counts))
    assert y.dtype == torch.float32
    same_values_and_gradients(y, looped(own["rows"], counts, own), leaves, own, FLOAT32_MODULE)


def test_no_rows_at_all_give_none() -> None:
    """A batch whose tokens all went elsewhere."""
    experts = references.randomise(Experts(3, 4, 8, PLAIN), seed=5)
    y = experts(torch.zeros(0, 4), torch.zeros(3, dtype=torch.int64))
    assert y.shape == (0, 4)
    y.sum().backward()
    assert not any(weight.grad.any() for weight in experts.parameters())


def test_parameters_hold_gate_columns_before_up_columns() -> None:
    """With zeros for the first W columns the gate is silu(0) = 0, and so is the output; not so for the last."""
    experts = Experts(2, 3, 4, PLAIN).double()
    assert {name: tuple(w.shape) for name, w in experts.named_parameters()} == {
        "w_gate_up": (2, 3, 8),
        "w_down": (2, 4, 3),
    }
    torch.nn.init.ones_(experts.w_down)
    rows, counts = torch.ones(2, 3, dtype=torch.float64), torch.tensor([1, 1])
    with torch.no_grad():
        experts.w_gate_up[...] = 1.0
        experts.w_gate_up[0, :, :4] = 0.0
        experts.w_gate_up[1, :, 4:] = 0.0
        assert not experts(rows, counts).any()
        experts.w_gate_up[0, :, :4] = 1.0
        assert experts(rows, counts)[0].ne(0).all()
