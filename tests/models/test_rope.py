"""Rotary positions and YaRN, against their equations."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.config import ConfigError
from dsv2.models.rope import Rope, Yarn, rotate
from tests import references
from tests.references.tolerances import ANGLE, FLOAT32, FLOAT64, YARN_ANGLE, close, same_values_and_gradients

YARNS = {
    "checkpoint": {},
    "not stretched": {"factor": 1.0},
    "short": {"factor": 4.0, "original_length": 16, "mscale": 1.0, "mscale_all_dim": 0.5},
    "softmax untouched": {"factor": 8.0, "original_length": 64, "mscale": 0.707, "mscale_all_dim": 0.0},
    "wide ramp": {"factor": 40.0, "original_length": 4096, "beta_fast": 600.0, "beta_slow": 0.01},
    "no ramp": {"factor": 2.0, "original_length": 6},
}
DEFAULTS = {
    "factor": 40.0,
    "original_length": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}


def check_rotations(
    rotations: torch.Tensor, positions: list[int], thetas: list[float], factor: float, near: float
) -> None:
    """Each rotation is factor x e^(i position theta), as near as an angle in float32 can be."""
    assert rotations.dtype == torch.complex64
    assert rotations.shape == (len(positions), len(thetas))
    for t, position in enumerate(positions):
        for j, theta in enumerate(thetas):
            angle = position * theta
            error = abs(complex(rotations[t, j]) - factor * complex(math.cos(angle), math.sin(angle)))
            assert error <= factor * near * max(1.0, angle), f"position {position}, pair {j}: off by {error:.1e}"


@pytest.mark.parametrize("base", [10000.0, 100.0, 1e6])
@pytest.mark.parametrize("dim", [2, 4, 6, 64])
def test_rotations(dim: int, base: float) -> None:
    rope = Rope.Config(base=base).build()
    positions = [0, 1, 2, 5, 63, 4095, 163840]
    rotations = rope.rotations(torch.tensor(positions), dim)
    check_rotations(rotations, positions, references.rope_frequencies(dim, base), 1.0, ANGLE)
    assert rope.softmax_factor == 1.0


@pytest.mark.parametrize("dim", [2, 4, 10, 64, 128])
@pytest.mark.parametrize("yarn", YARNS.values(), ids=YARNS.keys())
def test_yarn_rotations(yarn: dict[str, float], dim: int) -> None:
    """The angles, the factor on cosines and sines, and the factor on the softmax scale."""
    rope = Rope.Config(yarn=Yarn.Config(**yarn)).build()
    y = DEFAULTS | yarn
    thetas = references.yarn_frequencies(
        dim, 10000.0, y["factor"], y["original_length"], y["beta_fast"], y["beta_slow"]
    )
    positions = [0, 1, 7, 100, 4096, 163839]
    factor = references.yarn_cos_sin_factor(y["factor"], y["mscale"], y["mscale_all_dim"])
    check_rotations(rope.rotations(torch.tensor(positions), dim), positions, thetas, factor, YARN_ANGLE)
    expected = references.yarn_softmax_factor(y["factor"], y["mscale_all_dim"])
    assert rope.softmax_factor == pytest.approx(expected, rel=FLOAT64)


def test_yarn_of_the_checkpoints() -> None:
    """Of V2's 32 pairs the first 11 keep their speed, those from 23 turn 40 times slower, the rest lie between."""
    plain, stretched = Rope.Config().build(), Rope.Config(yarn=Yarn.Config()).build()
    second = torch.tensor([1])
    ratios = (stretched.rotations(second, 64).angle() / plain.rotations(second, 64).angle())[0].tolist()
    assert ratios[:11] == pytest.approx([1.0] * 11, rel=FLOAT32)
    assert ratios[23:] == pytest.approx([1 / 40] * 9, rel=FLOAT32)
    assert all(fast > slow for fast, slow in pairwise(ratios[10:24]))
    assert stretched.rotations(second, 64).abs().tolist()[0] == pytest.approx([1.0] * 32, rel=FLOAT32)
    assert stretched.softmax_factor == pytest.approx((0.0707 * math.log(40) + 1) ** 2, rel=FLOAT64)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 7, 3, 4), (3, 2, 1, 10)])
def test_rotate_turns_neighbours(shape: tuple[int, int, int, int]) -> None:
    """Values and gradients, each pair (x_2j, x_2j+1) where it was."""
    B, T, H, dim = shape
    leaves = {"x": references.random(*shape, seed=1)}
    own = references.twin(leaves)
    positions = torch.arange(3, 3 + T)
    thetas = references.rope_frequencies(dim, 10000.0)
    expected = [
        references.turn(own["x"][b, t, i], int(positions[t]), thetas)
        for b in range(B)
        for t in range(T)
        for i in range(H)
    ]
    rotations = Rope.Config().build().rotations(positions, dim)
    same_values_and_gradients(
        rotate(leaves["x"], rotations), torch.stack(expected).reshape(shape), leaves, own, FLOAT32
    )


def test_rotate_by_hand() -> None:
    """A quarter turn takes (1, 2, 3, 4) to (-2, 1, -4, 3); of halves it would be (-3, -4, 1, 2)."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    rotations = torch.full((1, 2), 1j, dtype=torch.complex64)
    assert rotate(x, rotations).flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_keeps_the_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    x = references.random(1, 5, 2, 8, seed=2).detach().to(dtype)
    rotations = Rope.Config().build().rotations(torch.arange(5), 8)
    y = rotate(x, rotations)
    assert y.dtype == dtype
    exact = rotate(x.double(), rotations)
    rounding = 2**-8 if dtype == torch.bfloat16 else FLOAT32
    assert (y.double() - exact).abs().le(exact.abs() * rounding + FLOAT32).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(start=st.integers(0, 200), shift=st.integers(0, 200), distance=st.integers(0, 50), half=st.integers(1, 4))
def test_scores_depend_on_distance_alone(start: int, shift: int, distance: int, half: int) -> None:
    """q at t against k at s gives what q at t + shift against k at s + shift gives, and lengths stay."""
    rope = Rope.Config().build()
    q, k = references.random(1, 1, 1, 2 * half, seed=3), references.random(1, 1, 1, 2 * half, seed=4)

    def score(t: int, s: int) -> torch.Tensor:
        turned = [rotate(x, rope.rotations(torch.tensor([at]), 2 * half)) for x, at in ((q, t), (k, s))]
        return (turned[0] * turned[1]).sum()

    tolerance = 4 * ANGLE * (start + shift + distance + 10)  # both angles grow with the position
    close(score(start + shift + distance, start + shift), score(start + distance, start), tolerance)
    close(rotate(q, rope.rotations(torch.tensor([start]), 2 * half)).norm(), q.norm(), FLOAT32)


@pytest.mark.parametrize(
    ("config", "field", "value", "valid"),
    [
        (Rope, "base", 1.0, "more than 1"),
        (Yarn, "factor", 0.5, "at least 1"),
        (Yarn, "original_length", 0, "positive"),
        (Yarn, "beta_fast", 1.0, "more than beta_slow=1.0"),
    ],
)
def test_impossible_settings_are_refused(config: type[Rope | Yarn], field: str, value: float, valid: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}={value} is not valid: {valid}"):
        config.Config(**{field: value})
