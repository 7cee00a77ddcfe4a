"""What all compiled ops have in common: gradients of any layout, and results that repeat."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.attention import rotary_attention
from dsv2.kernels.cross_entropy import NOT_SCORED, head_nats, mean_nats
from dsv2.kernels.experts import routed_experts
from dsv2.kernels.norm import add_rms_norm, rms_norm
from dsv2.kernels.router import route_logits
from dsv2.kernels.swiglu import swiglu
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32, close

pytestmark = pytest.mark.usefixtures("compiled_ops")

EXPERTS = torch.tensor([[[0, 3], [3, 4], [4, 0], [3, 0], [4, 3]]])  # of 5; 1 and 2 get nothing
ROTATIONS = torch.polar(torch.ones(5, 3), normal(5, 3))
TARGETS = torch.tensor([3, NOT_SCORED, 0, 10, 3])


def attend(*parts: Tensor) -> Tensor:
    return rotary_attention(*parts, ROTATIONS, scale=0.4)  # type: ignore[misc]


def attend_plainly(*parts: Tensor) -> Tensor:
    return reference.rotary_attention(*parts, ROTATIONS, scale=0.4)  # type: ignore[misc]


Op = Callable[..., Tensor | tuple[Tensor, ...]]
OPS: dict[str, tuple[Op, Op, list[Tensor]]] = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, 1e-6),
        lambda x, w: reference.rms_norm(x, w, 1e-6),
        [normal(5, 19), normal(19)],
    ),
    "add_rms_norm": (
        lambda x, delta, w: add_rms_norm(x, delta, w, 1e-6),
        lambda x, delta, w: (x + delta, reference.rms_norm(x + delta, w, 1e-6)),
        [normal(5, 19), normal(5, 19, seed=1), normal(19, seed=2)],
    ),
    "swiglu": (swiglu, reference.swiglu, [normal(5, 38)]),
    "experts": (
        lambda x, g, up, down: routed_experts(x, EXPERTS, g, up, down),
        lambda x, g, up, down: reference.routed_experts(x, EXPERTS, g, up, down),
        [normal(1, 5, 19), normal(1, 5, 2, seed=1), normal(5, 19, 14, seed=2), normal(5, 7, 19, seed=3)],
    ),
    "attention": (
        attend,
        attend_plainly,
        [normal(2, 5, 4, width, seed=width) for width in (3, 6)]
        + [normal(2, 5, heads, width, seed=9) for heads, width in ((2, 3), (1, 6), (2, 5))],
    ),
    "router": (
        lambda logits: route_logits(logits, top_k=3, num_devices=4, max_devices=2)[::2],
        lambda logits: reference.route_logits(logits, top_k=3, num_devices=4, max_devices=2)[::2],
        [3 * normal(5, 20)],
    ),
    "head_nats": (
        lambda x, w: head_nats(x, w, TARGETS),
        lambda x, w: mean_nats(x @ w.t(), TARGETS),
        [normal(5, 19), normal(11, 19)],
    ),
}


def results(op: Op, inputs: list[Tensor], graded: Callable[[tuple[Tensor, ...]], Tensor]) -> list[Tensor]:
    """The outputs and the gradients of one number made of them."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    graded(outputs).backward()
    return [*outputs, *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]


def widened(outputs: tuple[Tensor, ...]) -> Tensor:
    """Join each output with a column, so that its gradient is a part of a wider tensor."""
    wide = [torch.cat((out.reshape(-1, 1), torch.zeros(out.numel(), 1)), -1) for out in outputs]
    return sum(((w * normal(*w.shape, seed=5)).sum() for w in wide), torch.zeros(()))


def turned(out: Tensor) -> Tensor:
    """Weight an output by numbers that lie in memory column by column."""
    return (out.mT @ normal(*out.shape, seed=6)).diagonal(dim1=-2, dim2=-1).sum() if out.dim() > 1 else out.sum()


LAYOUTS: dict[str, Callable[[tuple[Tensor, ...]], Tensor]] = {
    "of a wider tensor": widened,
    "expanded from a number": lambda outputs: sum((out.sum() for out in outputs), torch.zeros(())),
    "transposed": lambda outputs: sum((turned(out) for out in outputs), torch.zeros(())),
    "with an offset": lambda outputs: sum(((out.reshape(-1)[1:] ** 2).sum() for out in outputs), torch.zeros(())),
    "of the first output alone": lambda outputs: (outputs[0] ** 2).sum(),
    "of the last output alone": lambda outputs: (outputs[-1] ** 2).sum(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_gradients_of_any_layout_are_those_of_the_specification(name: str, layout: str) -> None:
    op, specification, inputs = OPS[name]
    expected = results(specification, inputs, LAYOUTS[layout])
    for got, want in zip(results(op, inputs, LAYOUTS[layout]), expected, strict=True):
        close(got, want, FLOAT32, f"{name}, gradient {layout}")


@pytest.mark.parametrize("name", OPS)
def test_inputs_of_any_layout_give_the_same(name: str) -> None:
    op, _, inputs = OPS[name]
    strided = [torch.stack((x, x + 1), dim=-1)[..., 0] for x in inputs]
    turned = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    expected = results(op, inputs, LAYOUTS["of a wider tensor"])
    for other in (strided, turned):
        leaves = [x.detach().requires_grad_() for x in other]
        assert not all(x.is_contiguous() for x in leaves)
        out = op(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        LAYOUTS["of a wider tensor"](outputs).backward()
        for got, want in zip([*outputs, *(x.grad for x in leaves)], expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("name", [name for name in OPS if name != "head_nats"])  # whose mean of nothing is NaN
def test_no_tokens_are_enough(name: str) -> None:
    op, _, inputs = OPS[name]
    if name == "experts":
        got = results(
            lambda x, g, up, down: routed_experts(x, EXPERTS[:, :0], g, up, down),
            [inputs[0][:, :0], inputs[1][:, :0], *inputs[2:]],
            LAYOUTS["expanded from a number"],
        )
    elif name == "attention":
        got = results(op, [x[:0] for x in inputs], LAYOUTS["expanded from a number"])
    else:
        got = results(op, [x[:0] if x.dim() > 1 else x for x in inputs], LAYOUTS["expanded from a number"])
    assert all(torch.equal(x, torch.zeros_like(x)) for x in got)


@pytest.mark.parametrize("name", OPS)
def test_results_repeat_and_do_not_depend_on_what_memory_held(name: str) -> None:
    op, _, inputs = OPS[name]
    first = results(op, inputs, widened)
    poison = [torch.full_like(x, torch.nan) for x in first for _ in range(9)]
    del poison
    assert all(torch.equal(a, b) for a, b in zip(first, results(op, inputs, widened), strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", OPS)
def test_every_number_of_threads_gives_the_specification(name: str, threads: int) -> None:
    op, specification, inputs = OPS[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = results(op, inputs, widened)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(got, results(specification, inputs, widened), strict=True):
        close(one, other, FLOAT32, name)
