"""Types of fields in words."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from dsv2.annotations import in_words
from dsv2.models.moe.layer import MoE


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (bool, "true or false"),
        (str | None, "text or null"),
        (str | tuple[str, ...], "text or a list of texts"),
        (Literal["auto", "cpu", "gpu"], "auto, cpu or gpu"),
        (Literal["lower"], "lower"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[int, ...] | None, "a list of whole numbers or null"),
        (tuple[Any, ...], "a list of values"),
        (tuple[tuple[int, ...], ...], "a list of entries, each a list of whole numbers"),
        (dict[str, float], "a mapping from text to a number"),
        (Mapping[str, Literal["lower", "higher"]], "a mapping from text to lower or higher"),
        (dict[str, Any], "a mapping from text to a value"),
        (MoE, "MoE"),
    ],
    ids=str,
)
def test_types_are_said_in_words(annotation: Any, words: str) -> None:
    assert in_words(annotation) == words
