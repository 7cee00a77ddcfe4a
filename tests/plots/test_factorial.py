"""Figures of a factorial study draw every term and every seed."""

import numpy as np
import pytest

from dsv2.plots.factorial import factorial_forest, interaction
from dsv2.statistics.factorial import Term, factorial
from tests.references.factorial import TWO, design_of, simulate
from tests.references.figures import TITLE, assert_readable

DESIGN = design_of(TWO)


def terms_of(seeds: int = 5) -> list[Term]:
    return factorial(simulate(seeds=seeds), "val/loss", DESIGN, seeds=range(seeds))


def test_every_figure_is_whole_and_readable() -> None:
    terms = terms_of()
    two = [*terms, *(term._replace(metric="routing/max_violation") for term in terms)]
    directions = {"val/loss": "lower", "routing/max_violation": "lower"}
    assert_readable(factorial_forest(terms, directions=directions, title=TITLE))
    assert_readable(factorial_forest(two, directions=directions, title=TITLE))
    ax = interaction(simulate(seeds=5), "val/loss", DESIGN, "expert", "device", seeds=range(5), title=TITLE)
    assert_readable(ax.figure)  # type: ignore[arg-type]


def test_a_forest_has_a_row_per_term_with_interactions_below_a_line() -> None:
    terms = terms_of()
    figure = factorial_forest(terms, directions={"val/loss": "lower"})
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [term.term for term in terms]
    assert ax.get_title(loc="left") == "effect on validation loss\n(nats/token)"
    assert ax.get_xlabel() == "← better"
    (line,) = (line for line in ax.lines if line.get_color() == "0.6")
    assert line.get_ydata()[0] == 2.5  # type: ignore[index]  # three main effects above it
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(np.asarray(dot.get_xdata())[0]) for dot in dots] == [term.effect for term in terms]
    assert {dot.get_markerfacecolor() for dot in dots} == {"white"}  # exploratory


def test_an_interaction_draws_every_seed_and_the_means() -> None:
    results = simulate(seeds=5)
    ax = interaction(results, "val/loss", DESIGN, "expert", "device", seeds=range(5))
    assert len(ax.get_lines()) == 2 * (5 + 1)
    means = [line.get_ydata() for line in ax.get_lines() if line.get_label() == "device=0.05"]
    wanted = results[results["device"] == 0.05].groupby("expert")["val/loss"].mean()
    np.testing.assert_allclose(means[0], wanted.to_numpy())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.003"]
    with pytest.raises(ValueError, match="factor='rank': must be one of expert, device, limit"):
        interaction(results, "val/loss", DESIGN, "expert", "rank", seeds=range(5))
