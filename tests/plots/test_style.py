"""The pieces that figures are made of: the style, heights of titles and legends, axes, lines and intervals."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dsv2.plots import style
from tests.references.figures import seen
from tests.references.tables import SIX, Tables

LONG = "A title of so many words that one line of a column's width does not hold it, nor do two of them"


def test_a_styled_function_draws_in_the_style_with_its_own_changes_and_nothing_stays() -> None:
    before = dict(matplotlib.rcParams)

    @style.styled({"axes.grid": False, "font.size": 20})
    def draw(fail: bool = False) -> tuple[object, ...]:
        """Say what is set."""
        if fail:
            raise KeyError("inside")
        return tuple(matplotlib.rcParams[key] for key in ("axes.grid", "font.size", "axes.titlelocation"))

    assert draw() == draw() == (False, 20.0, "left")
    assert draw.__doc__ == "Say what is set."
    with pytest.raises(KeyError):
        draw(fail=True)
    assert dict(matplotlib.rcParams) == before
    assert style.STYLE["font.size"] == 8


def test_ten_arms_have_a_marker_and_a_colour_each_by_their_place() -> None:
    arms = [f"arm{i}" for i in range(10)]
    styles = style.arm_styles(arms)
    assert len({look["marker"] for look in styles.values()}) == 10
    assert len({look["color"] for look in styles.values()}) == 10
    assert style.arm_styles(arms[:3]) == {arm: styles[arm] for arm in arms[:3]}
    assert style.arm_styles([*arms, "eleventh"])["eleventh"]["color"] == styles["arm0"]["color"]


def test_a_title_makes_a_figure_higher_by_its_lines() -> None:
    lines = len(style.wrapped(LONG, style.COLUMN))
    assert lines == 2
    assert style.title_height(None, style.COLUMN) == 0
    plain, titled = (style.figure_of(style.single(2.0, title)) for title in (None, LONG))
    assert tuple(plain.get_size_inches()) == (style.COLUMN, 2.0)
    assert titled.get_size_inches()[1] == pytest.approx(2.0 + lines * style.TITLE_LINE)
    assert titled.get_suptitle().split("\n") == style.wrapped(LONG, style.COLUMN)
    assert plain.get_suptitle() == ""


def test_a_callers_axes_are_used_and_titled() -> None:
    figure, ax = plt.subplots()
    assert style.single(2.0, LONG, ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert max(map(len, ax.get_title().split("\n"))) <= 40
    assert ax.get_title().replace("\n", " ") == LONG
    assert style.single(2.0, None, ax).get_title().replace("\n", " ") == LONG  # no title takes none away


@pytest.mark.parametrize(
    ("count", "columns", "width", "rows"),
    [(1, 3, style.COLUMN, 1), (2, 3, style.PAGE * 2 / 3, 1), (3, 3, style.PAGE, 1), (4, 3, style.PAGE, 2)],
)
def test_panels_fill_the_page(count: int, columns: int, width: float, rows: int) -> None:
    figure, axes = style.panels(count, columns=columns, height=1.5, title="Finding", margin=0.3)
    assert len(axes) == len(figure.axes) == count
    assert tuple(figure.get_size_inches()) == pytest.approx((width, 1.5 * rows + 0.3))
    assert figure.get_suptitle() == "Finding"


def test_panels_take_a_width_of_their_own_and_share_an_axis() -> None:
    figure, axes = style.panels(2, columns=1, height=1.0, width=5.0, sharey=True)
    assert figure.get_size_inches()[0] == 5.0
    axes[0].set_ylim(0, 9)
    assert axes[1].get_ylim() == (0, 9)


@style.styled()
def test_one_legend_names_every_label_once_below_the_figure() -> None:
    figure, axes = style.panels(2, columns=2, height=1.5)
    for ax in axes:
        ax.plot([0, 1], label="both")
    axes[1].plot([1, 0], label="second")
    style.legend_below(axes, 2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "second"]
    figure.canvas.draw()
    assert legend.get_window_extent().y1 <= min(ax.get_window_extent().y0 for ax in axes)


def test_no_labels_no_legend() -> None:
    ax = style.single(2.0, None)
    ax.plot([0, 1])
    style.legend_below([ax], 3)
    assert not style.figure_of(ax).legends


def test_rows_of_a_legend() -> None:
    assert [style.legend_columns(labels) for labels in (["short"], ["twelve chars"], [])] == [3, 2, 3]
    heights = [style.legend_height(count, 3) for count in (0, 1, 3, 4)]
    assert heights == pytest.approx([0, style.LEGEND_ROW, style.LEGEND_ROW, 2 * style.LEGEND_ROW])


def test_panel_titles_break_where_told() -> None:
    ax = style.single(2.0, None)
    style.panel_title(ax, "expert violation (max/mean - 1) of an arm")
    assert max(map(len, ax.get_title().split("\n"))) <= style.PANEL_TITLE
    style.panel_title(ax, "one two three", width=7)
    assert ax.get_title() == "one two\nthree"


@style.styled()
def test_axes_of_large_numbers_percent_and_rows() -> None:
    ax = style.single(2.0, None)
    ax.plot([0, 40_000], [0, 0.5])
    style.tokens_axis(ax)
    style.percent(ax.yaxis)
    style.figure_of(ax).canvas.draw()
    assert "30k" in [tick.get_text() for tick in ax.get_xticklabels()]
    assert ax.get_xlabel() == "training tokens"
    assert "40%" in [tick.get_text() for tick in ax.get_yticklabels()]
    style.rows_axis(ax, ["top", "bottom"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["top", "bottom"]
    assert ax.get_ylim() == (1.5, -0.5)


def test_a_difference_is_named_with_its_unit() -> None:
    assert style.difference_label("val/loss", "mha") == "validation loss,\narm - mha (nats/token)"
    assert style.difference_label("routing/devices_per_token", "mha") == "devices per token,\narm - mha"


def test_a_floor_is_drawn_where_it_is_known() -> None:
    ax = style.single(2.0, None)
    style.floor_line(ax, None, "routing/entropy")
    style.floor_line(ax, {"routing/overflow": 0.1}, "routing/entropy")
    assert not ax.lines
    style.floor_line(ax, {"routing/entropy": 0.99}, "routing/entropy")
    style.floor_line(ax, {"routing/entropy": 0.98}, "routing/entropy", vertical=True)
    across, up = ax.lines
    assert list(across.get_ydata()) == [0.99, 0.99]  # type: ignore[arg-type]
    assert list(up.get_xdata()) == [0.98, 0.98]  # type: ignore[arg-type]
    assert {line.get_label() for line in ax.lines} == {"random router"}


def test_an_interval_is_hollow_unless_filled() -> None:
    ax = style.single(2.0, None)
    style.interval(ax, 3, -1.0, 0.5, 2.0, filled=False)
    style.interval(ax, 4, -1.0, 0.5, 2.0, filled=True, marker="s")
    bar, hollow, _, filled = ax.lines
    assert (list(bar.get_xdata()), list(bar.get_ydata())) == ([-1.0, 2.0], [3, 3])  # type: ignore[arg-type]
    assert (hollow.get_marker(), hollow.get_markerfacecolor()) == ("o", "white")
    assert filled.get_marker() == "s"
    assert filled.get_markerfacecolor() == filled.get_color() != "white"


def test_curves_are_of_the_arms_that_logged_the_metric(six: Tables) -> None:
    metrics = six.metrics[(six.metrics["arm"] != "paper") | (six.metrics["metric"] != "val/loss")]
    drawn = style.curves(metrics, "val/loss", SIX)
    assert [arm for arm, _ in drawn] == [arm for arm in SIX if arm != "paper"]
    arm, table = drawn[0]
    seeds = metrics[(metrics["metric"] == "val/loss") & (metrics["arm"] == arm)].pivot(
        index="tokens", columns="seed", values="value"
    )
    wanted = pd.DataFrame({"mean": seeds.mean(axis=1), "min": seeds.min(axis=1), "max": seeds.max(axis=1)})
    np.testing.assert_allclose(table, wanted)
    ax = style.single(2.0, None)
    style.draw_curves(ax, drawn, style.arm_styles(SIX))
    assert [line.get_label() for line in seen(ax)] == [arm for arm, _ in drawn]
    assert len(ax.collections) == len(drawn)  # a band each
