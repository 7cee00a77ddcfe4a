"""A contrast, which verdicts are given on; apart from them, so that planning a study needs no statistics."""

from typing import NamedTuple


class Contrast(NamedTuple):
    """A comparison that was declared before the study was run."""

    arm: str
    baseline: str
    metric: str
    margin: float  # largest difference that does not matter; NaN if none was declared
    predicted: str | None = None  # better, worse or equivalent, if the study says so
