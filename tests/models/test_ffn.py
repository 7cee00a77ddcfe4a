"""The dense feed-forward network against its equation."""

import pytest
import torch

from dsv2.config import ConfigError
from dsv2.models.ffn import SwiGLU
from tests import references
from tests.references.tolerances import FLOAT32_MODULE, FLOAT64, same_values_and_gradients


def looped(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """One row of x (B, T, d) after the other."""
    gate, up = references.halves(w["w_gate_up"])
    rows = [references.swiglu(row, gate, up, w["w_down"]) for row in x.flatten(0, 1)]
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize(("shape", "width"), [((1, 1, 1), 1), ((1, 7, 5), 3), ((3, 2, 4), 9)])
def test_values_and_gradients_are_those_of_a_loop(shape: tuple[int, int, int], width: int) -> None:
    ffn = references.randomise(SwiGLU.Config(width=width).build(shape[-1]).double(), seed=4)
    leaves = {"x": references.random(*shape, seed=5), **dict(ffn.named_parameters())}
    own = references.twin(leaves)
    same_values_and_gradients(ffn(leaves["x"]), looped(own["x"], own), leaves, own, FLOAT64)


def test_float32_is_as_close_as_it_can_be() -> None:
    ffn = references.randomise(SwiGLU.Config(width=33).build(17), seed=6)
    x = references.random(1, 5, 17, seed=7).detach().float().requires_grad_()
    leaves = {"x": x, **dict(ffn.named_parameters())}
    own = references.twin(leaves)
    same_values_and_gradients(ffn(leaves["x"]), looped(own["x"], own), leaves, own, FLOAT32_MODULE)


def test_parameters_are_named_and_shaped_as_the_config_says() -> None:
    config = SwiGLU.Config(width=9)
    expected = {"w_gate_up": (18, 4), "w_down": (4, 9)}
    assert {name: tuple(weight.shape) for name, weight in config.build(4).named_parameters()} == expected
    assert {weight.name: weight.shape for weight in config.weights(4)} == expected


def test_a_call_leaves_nothing_behind() -> None:
    ffn = references.randomise(SwiGLU.Config(width=4).build(6).double(), seed=8)
    references.remembers_nothing(ffn, lambda: ffn(references.random(1, 3, 6, seed=9)))


@pytest.mark.parametrize("width", [0, -1])
def test_a_width_that_is_not_positive_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=f"^width={width} is not valid: positive"):
        SwiGLU.Config(width=width)
