"""RMSNorm, SwiGLU, the order of a block and the loss, against their equations."""

import pytest
import torch

from dsv2.models.ffn import SwiGLU
from dsv2.models.norm import RMSNorm
from tests import references
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE, FLOAT64, close, same_values_and_gradients


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (3, 2, 8), (2, 3, 4, 6)])
def test_rms_norm(shape: tuple[int, ...], eps: float) -> None:
    norm = references.randomise(RMSNorm(shape[-1], eps).double(), seed=1)
    leaves = {"x": references.random(*shape, seed=2), "w": norm.w}
    own = references.twin(leaves)
    same_values_and_gradients(norm(leaves["x"]), references.rms_norm(own["x"], own["w"], eps), leaves, own, FLOAT32)


def test_rms_norm_adds_epsilon_to_the_mean_square() -> None:
    """With a mean square of epsilon the result is 1 / sqrt(2): outside the root, or on the norm, it would not be."""
    norm = RMSNorm(4, 1e-6).double()
    torch.nn.init.ones_(norm.w)
    close(norm(torch.full((1, 4), 1e-3, dtype=torch.float64)), torch.full((1, 4), 0.5).sqrt(), FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_works_in_float32_and_returns_what_it_got(dtype: torch.dtype) -> None:
    norm = RMSNorm(64, 1e-6).to(dtype)
    torch.nn.init.ones_(norm.w)
    x = (300 * references.random(2, 5, 64, seed=3)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    expected = references.rms_norm(x.double(), norm.w.double(), 1e-6)
    if dtype == torch.bfloat16:
        assert (y.double() - expected).abs().le(expected.abs() * 2**-8).all()  # one rounding to 8 bits, at the end
    else:
        close(y, expected, FLOAT32)


@pytest.mark.parametrize(("shape", "width"), [((1, 1, 1), 1), ((1, 7, 5), 3), ((3, 2, 4), 9)])
def test_swiglu(shape: tuple[int, int, int], width: int) -> None:
    ffn = references.randomise(SwiGLU.Config(width=width).build(shape[-1]).double(), seed=4)
    leaves = {"x": references.random(*shape, seed=5), **dict(ffn.named_parameters())}
    own = references.twin(leaves)
    y = ffn(leaves["x"])
    gate, up = references.halves(own["w_gate_up"])
    rows = [references.swiglu(row, gate, up, own["w_down"]) for row in own["x"].flatten(0, 1)]
    same_values_and_gradients(y, torch.stack(rows).reshape(shape), leaves, own, FLOAT64)


def test_swiglu_in_float32() -> None:
    ffn = references.randomise(SwiGLU.Config(width=33).build(17), seed=6)
    leaves = {
        "x": references.random(1, 5, 17, seed=7).detach().float().requires_grad_(),
        **dict(ffn.named_parameters()),
    }
    own = references.twin(leaves)
    gate, up = references.halves(own["w_gate_up"])
    rows = [references.swiglu(row, gate, up, own["w_down"]) for row in own["x"][0]]
    same_values_and_gradients(ffn(leaves["x"]), torch.stack(rows)[None], leaves, own, FLOAT32_MODULE)


def test_neither_remembers_anything() -> None:
    for module in (RMSNorm(6, 1e-6), SwiGLU.Config(width=4).build(6)):
        references.randomise(module.double(), seed=8)
        before = references.remembered(module)
        first, second = (module(references.random(1, 3, 6, seed=9)) for _ in range(2))
        assert references.remembered(module) == before
        assert torch.equal(first, second)


def test_the_reference_of_the_loss_is_torchs() -> None:
    """Holds the specification of the loss, which other tests compare with, to another implementation."""
    logits, targets = references.random(2, 3, 7, seed=10), torch.tensor([[0, 6, 3], [1, 1, 5]])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    close(references.cross_entropy(logits, targets), expected, FLOAT64)


def test_the_reference_of_a_block_is_pre_norm() -> None:
    """With branches that return 0 a block is the identity, so no norm stands on the residual."""
    x = references.random(1, 3, 4, seed=11)
    w = references.random(4, seed=12)
    assert torch.equal(references.block(x, (w, w), 1e-6, torch.zeros_like, torch.zeros_like), x)
    once = references.block(x, (w, w), 1e-6, lambda h: h, torch.zeros_like)
    close(once, x + references.rms_norm(x, w, 1e-6), FLOAT64)
    twice = references.block(x, (w, w), 1e-6, lambda h: h, lambda h: h)
    close(twice, once + references.rms_norm(once, w, 1e-6), FLOAT64)
