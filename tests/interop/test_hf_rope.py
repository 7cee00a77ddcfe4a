"""RoPE in a `config.json`: YaRN's factors as transformers has them, both spellings, and the way back."""

import math
from typing import Any

import pytest

from dsv2.interop.hf_rope import rope_of, rope_to_hf
from dsv2.models.rope import NTK, Interpolation, Rope, Yarn
from tests.references.twins import yarn

LENGTH = {"max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("given", "on_cos_and_sin", "on_softmax"),
    [
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0, 0.707),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, None, 0.5),
        ({"mscale": 0.707}, "m(1)", 0.0),  # one of the two alone is not used
        ({"mscale_all_dim": 0.707}, "m(1)", 0.707),
        ({}, "m(1)", 0.0),
        ({"attention_factor": 1.5, "mscale": 0.707, "mscale_all_dim": 0.707}, 1.5, 0.707),
    ],
)
def test_yarns_factors_are_those_of_transformers(
    given: dict[str, float], on_cos_and_sin: float | str | None, on_softmax: float
) -> None:
    """On cosines and sines m(mscale) / m(mscale_all_dim) where both are given, else m(1), else what is written out;
    on the softmax m(mscale_all_dim)^2; m(x) = 0.1 x ln(40) + 1."""

    def m(mscale: float) -> float:
        return 0.1 * mscale * math.log(40) + 1

    expected = {"m(1)": m(1.0), None: m(1.0) / m(0.5)}.get(on_cos_and_sin, on_cos_and_sin)
    rope = rope_of({"rope_parameters": yarn(**given)})
    assert rope.yarn is not None
    factor = rope.yarn.length_scale(rope.yarn.mscale) / rope.yarn.length_scale(rope.yarn.mscale_all_dim)
    assert factor == pytest.approx(expected, rel=1e-12)
    assert rope.build().softmax_factor == pytest.approx(m(on_softmax) ** 2, rel=1e-12)


def test_the_original_length_is_the_longest_sequence_unless_given() -> None:
    parameters = {"rope_type": "yarn", "factor": 40.0, "rope_theta": 1e4}
    rope = rope_of({"rope_parameters": parameters, "max_position_embeddings": 777})
    assert rope.yarn is not None
    assert rope.yarn.original_length == 777


def test_files_of_2024_and_of_2026_say_the_same() -> None:
    """`rope_scaling` with `type` and `rope_theta` beside it, against `rope_parameters`."""
    old = {"rope_theta": 5e4, "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 512}}
    new = {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "rope_theta": 5e4,
        }
    }
    assert rope_of(old) == rope_of(new)


def test_interpolation_ends_at_the_longest_sequence() -> None:
    rope = rope_of({"rope_parameters": {"rope_type": "linear", "factor": 4.0}, **LENGTH})
    assert rope == Rope.Config(extension=Interpolation.Config(factor=4.0, original_length=1024))
    assert rope.limit == 4096


@pytest.mark.parametrize(
    "rope",
    [
        Rope.Config(base=100.0),
        Rope.Config(yarn=Yarn.Config(factor=4.0, original_length=1024)),
        Rope.Config(extension=Interpolation.Config(factor=4.0, original_length=1024)),
    ],
)
def test_there_and_back(rope: Rope.Config) -> None:
    parameters: dict[str, Any] = rope_to_hf(rope, 8)
    assert rope_of({"rope_parameters": parameters, **LENGTH}) == rope


def test_ntk_leaves_as_a_base() -> None:
    """With the frequencies that it has: the slowest of 4 pairs turns 4 times as slowly."""
    parameters = rope_to_hf(Rope.Config(base=100.0, extension=NTK.Config(factor=4.0)), 8)
    assert parameters["rope_type"] == "default"
    assert parameters["rope_theta"] ** (6 / 8) == pytest.approx(4 * 100 ** (6 / 8))
