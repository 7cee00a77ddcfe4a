"""Figures of a study draw what the tables say, for six arms, for two, and for dense models."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dsv2 import plots
from dsv2.metrics import quantity
from dsv2.statistics.contrast import Contrast
from dsv2.statistics.verdicts import Effect, explore, judge
from tests.references.figures import TITLE, assert_readable, seen
from tests.references.tables import SIX, Tables, fake

JUDGED = {"val/loss": "lower", "routing/max_violation": "lower"}


def effects_of(tables: Tables, arms: tuple[str, ...], seeds: int) -> list[Effect]:
    return [
        effect
        for metric in JUDGED
        for effect in explore(tables.results, metric, arms=arms, baseline=arms[0], seeds=range(seeds))
    ]


def verdicts_of(tables: Tables, arms: tuple[str, ...], seeds: int) -> list[Effect]:
    contrasts = [Contrast(arms[1], arms[0], "val/loss", 0.02), Contrast(arms[1], arms[0], "routing/max_violation", 0.1)]
    return judge(tables.results, contrasts, seeds=range(seeds), directions=JUDGED, error=0.02)


@pytest.mark.parametrize(
    ("arms", "layers", "experts"), [(SIX, 2, 32), (("none", "paper"), 1, 32), (tuple("abcdefgh"), 1, 8)]
)
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...], layers: int, experts: int) -> None:
    tables = fake(arms, seeds=3, layers=layers, experts=experts, steps=4)
    effects = effects_of(tables, arms, 3)
    for figure in (
        plots.loss_over_tokens(tables.metrics, train=True, title=TITLE).figure,
        plots.difference_over_tokens(tables.metrics, arms[0], title=TITLE).figure,
        plots.metric_by_arm(tables.results, "routing/max_violation", floor=0.05, title=TITLE).figure,
        plots.forest(effects, verdicts=verdicts_of(tables, arms, 3), directions=JUDGED, title=TITLE),
        plots.imbalance_over_training(tables.metrics, floor={"routing/max_violation": 0.05}, title=TITLE),
    ):
        assert isinstance(figure, Figure)
        assert_readable(figure)


def test_an_arm_looks_the_same_in_every_figure_and_unlike_every_other(six: Tables) -> None:
    part = six.metrics[six.metrics["arm"].isin(["device", "paper"])]
    whole = {line.get_label(): line for line in seen(plots.loss_over_tokens(six.metrics, arms=SIX))}
    for line in seen(plots.loss_over_tokens(part, arms=SIX)):
        assert line.get_color() == whole[line.get_label()].get_color()
    assert len({line.get_marker() for line in whole.values()}) == len(SIX)
    assert len({line.get_color() for line in whole.values()}) == len(SIX)


def test_curves_are_means_over_seeds(six: Tables) -> None:
    ax = plots.loss_over_tokens(six.metrics)
    line = next(line for line in ax.lines if line.get_label() == "paper")
    rows = six.metrics[(six.metrics.metric == "val/loss") & (six.metrics.arm == "paper")]
    np.testing.assert_allclose(line.get_ydata(), rows.groupby("tokens")["value"].mean())
    difference = plots.difference_over_tokens(six.metrics, "none")
    last = next(line for line in difference.lines if line.get_label() == "paper").get_ydata()[-1]  # type: ignore[index]
    final = six.results.groupby("arm")["val/loss"].mean()
    assert last == pytest.approx(final["paper"] - final["none"])
    assert "none" not in [line.get_label() for line in difference.lines]


def test_bars_of_differences_stand_beside_one_another(six: Tables) -> None:
    ax = plots.difference_over_tokens(six.metrics, "none")
    points = {line.get_label(): np.asarray(line.get_xdata()) for line in ax.lines if line.get_marker() != "none"}
    at_end = sorted(points[arm][-1] for arm in SIX[1:])
    assert len(set(at_end)) == 5
    assert max(len(places) for places in points.values()) <= 8


def test_long_curves_begin_where_their_fall_is_over() -> None:
    metrics = fake(("none", "paper"), seeds=2, layers=1, experts=8, steps=20).metrics
    losses = metrics[metrics["metric"] == "val/loss"]
    later = losses[losses["tokens"] >= losses["tokens"].max() / 10]["value"]
    low, high = plots.loss_over_tokens(metrics).get_ylim()
    assert low < later.min() < later.max() < high < losses["value"].max()


def test_axes_say_the_metric_with_its_unit(six: Tables) -> None:
    assert plots.loss_over_tokens(six.metrics).get_ylabel() == quantity("val/loss").label
    assert plots.metric_by_arm(six.results, "val/bpb").get_xlabel() == quantity("val/bpb").label
    difference = plots.difference_over_tokens(six.metrics, "none", "routing/overflow")
    assert difference.get_ylabel() == "overflow at capacity 1.0,\narm - none (share)"


def test_a_callers_axes_hold_title_and_legend_and_no_figure_is_made(six: Tables) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert plots.loss_over_tokens(six.metrics, title="Of the left", ax=left) is left
    assert plots.metric_by_arm(six.results, title="Of the right", ax=right) is right
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["Of the left", "Of the right"]
    assert figure.get_suptitle() == ""
    assert not figure.legends
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(SIX)  # type: ignore[union-attr]
    assert plt.get_fignums() == [figure.number]


def test_forest_has_a_panel_per_metric_with_verdicts_among_what_is_exploratory(six: Tables) -> None:
    verdicts = verdicts_of(six, SIX, 6)
    effects = [effect for effect in effects_of(six, SIX, 6) if effect.arm != SIX[1]]
    figure = plots.forest(effects, verdicts=verdicts, directions=JUDGED, arms=SIX)
    assert len(figure.axes) == 2
    assert [verdict.word for verdict in verdicts] == ["undecided", "better"]
    for ax, verdict in zip(figure.axes, verdicts, strict=True):
        dots = [line for line in seen(ax) if line.get_marker() == "o"]
        (blue,) = (dot for dot in dots if dot.get_color() != "0.55")
        assert (blue.get_markerfacecolor() != "white") == (verdict.word in ("better", "worse"))
        grey = [dot for dot in dots if dot.get_color() == "0.55"]
        assert len(grey) == 4
        assert {dot.get_markerfacecolor() for dot in grey} == {"white"}
        assert len(ax.collections) == 1  # the margin, in the row of its contrast
        assert ax.get_xlabel() == "← better"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(SIX[1:])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["better", "undecided", "exploratory"]


def test_every_verdict_has_a_marker_of_its_own_also_without_an_interval(six: Tables) -> None:
    verdict = verdicts_of(six, SIX, 6)[0]
    same = verdict._replace(low=-0.01, high=0.01, word="equivalent")
    endless = verdict._replace(low=-np.inf, high=np.inf, word="undecided")
    identical = verdict._replace(low=0.0, high=0.0, mean=0.0, word="identical")
    for effect, marker in ((same, "s"), (endless, "o"), (identical, "|")):
        (ax,) = plots.forest([], verdicts=[effect]).axes
        (dot,) = (line for line in seen(ax) if line.get_marker() == marker)
        assert (dot.get_markerfacecolor() == "white") == (effect is endless)
        assert np.isfinite(ax.get_xlim()).all()


def test_imbalance_shows_the_drop_rate_only_where_something_is_dropped(six: Tables) -> None:
    titles = [ax.get_title(loc="left") for ax in plots.imbalance_over_training(six.metrics).axes]
    assert any("dropped" in title for title in titles)
    dropless = six.metrics[six.metrics["arm"] != "paper_dropping"]
    titles = [ax.get_title(loc="left") for ax in plots.imbalance_over_training(dropless).axes]
    assert titles
    assert not any("dropped" in title for title in titles)


def test_a_random_router_is_drawn_where_its_floor_is_known(six: Tables) -> None:
    axes = plots.imbalance_over_training(six.metrics, floor={"routing/max_violation": 0.05}).axes
    floors = [[line.get_ydata()[0] for line in ax.lines if line.get_label() == "random router"] for ax in axes]  # type: ignore[index]
    assert floors == [[0.05], *([[]] * (len(axes) - 1))]


def test_one_seed_is_joined_by_a_line_and_the_mean_is_marked(six: Tables) -> None:
    ax = plots.metric_by_arm(six.results, floor=5.0)
    means = six.results.groupby("arm")["val/loss"].mean()
    bars = [line.get_xdata()[0] for line in ax.lines if line.get_color() == "black" and line.get_linestyle() == "-"]  # type: ignore[index]
    np.testing.assert_allclose(bars, [means[arm] for arm in SIX])
    grey = [line for line in ax.lines if line.get_color() == "0.8"]
    assert [len(np.asarray(line.get_xdata())) for line in grey] == [len(SIX)] * 6
    assert [text.get_text() for text in ax.texts] == [" random router"]


def test_dense_tables_have_no_imbalance() -> None:
    tables: pd.DataFrame = fake(("mha", "mla"), seeds=2, steps=4, dense=True).metrics
    with pytest.raises(ValueError, match="dense"):
        plots.imbalance_over_training(tables)
