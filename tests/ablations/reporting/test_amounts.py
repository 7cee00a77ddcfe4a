"""Times and counts have few digits and a unit that suits their size."""

import pytest

from ablations.reporting.amounts import duration, large


@pytest.mark.parametrize(("value", "text"), [(12, "12"), (651_264, "651K"), (15.7e9, "15.7B"), (2.5e12, "2.5T")])
def test_counts(value: float, text: str) -> None:
    assert large(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12"), (999, "999"), (1000, "1K"), (650_700, "650.7K"), (235_741_434_880, "235.7B"), (1.5e12, "1.5T")],
)
def test_counts_with_four_digits(count: float, text: str) -> None:
    assert large(count, digits=4) == text


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (240, "4 min"), (9000, "2.5 h")])
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text
