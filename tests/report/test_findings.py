"""Findings that are made from tables alone say what the tables hold, and a figure that fails leaves its tables."""

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dsv2.report.findings import by_token, drawn, settling, together
from dsv2.routing.interventions import DoesNotApply

matplotlib.use("Agg")
TABLE = pd.DataFrame({"x": [1]})


def overlaps(*steps: int) -> pd.DataFrame:
    """Overlaps of two layers that grow with the step, by .1 apart from one another."""
    rows = [(layer, step, step / steps[-1] - 0.1 * layer, 0.25) for layer in (0, 1) for step in steps]
    return pd.DataFrame(rows, columns=["layer", "step", "overlap", "chance"])


@pytest.mark.parametrize(
    ("steps", "finding"),
    [
        ((0, 40, 60, 100), "Halfway through training 35% of"),
        ((10, 50, 100), "Halfway through training 45% of"),
        ((80, 90, 100), "After step 80 75% of"),
    ],
)
def test_routing_settles_as_of_the_last_step_before_the_middle(steps: tuple[int, ...], finding: str) -> None:
    analysis = settling(overlaps(*steps), "for these tokens")
    assert analysis.finding == f"{finding} a token's experts are its final ones, 25% by chance."
    assert "with those after step 100, for these tokens." in analysis.note
    assert ("untrained" in analysis.note) == (steps[0] == 0)
    assert set(analysis.figures) == set(analysis.tables) == {"saturation"}
    plt.close("all")


def test_the_pair_that_is_named_is_a_frequent_one() -> None:
    rows = [(2, 0, 1, 30, 15.0, 2.0), (2, 0, 2, 3, 1.0, 3.0), (2, 1, 2, 8, 16.0, 0.5)]
    pairs = pd.DataFrame(rows, columns=["layer", "expert", "other", "tokens", "expected", "ratio"])
    analysis = together(pairs)
    assert analysis.finding.startswith("Experts 0 and 1 of layer 2 are chosen together 2.0 times as often")
    assert together(pairs.iloc[1:2]).finding.startswith("Experts 0 and 2 of layer 2 are chosen together 3.0 times")
    assert analysis.tables["pairs"]["ratio"].tolist() == [3, 2, 0.5]
    plt.close("all")


def test_a_choice_that_hardly_varies_has_no_tokens() -> None:
    with pytest.raises(DoesNotApply, match="hardly varies"):
        by_token(pd.DataFrame({"share_of_most": [float("nan")] * 2}), TABLE)


def test_a_figure_that_cannot_be_drawn_leaves_its_tables() -> None:
    def broken() -> Figure:
        raise KeyError("layer\nand more")

    analysis = drawn("?", "Found.", "Note.", {"table": TABLE}, {"bad": broken, "good": Figure})
    assert analysis.problems == ["The figure bad could not be drawn: KeyError: 'layer\\nand more'."]
    assert set(analysis.figures) == {"good"}
    assert set(analysis.tables) == {"table"}
