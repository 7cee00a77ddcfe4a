"""Figures of needles in a haystack draw what their tables say, for one model and for many arms."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from dsv2 import plots
from dsv2.statistics.shares import found_by_length
from tests.references.figures import TITLE, assert_readable, overlapping_ticks, seen
from tests.references.tables import fake_needles

ARMS = ("trained", "interpolated", "ntk_aware", "yarn", "none_tuned", "interpolated_tuned", "yarn_tuned")


@pytest.mark.parametrize(
    ("arms", "lengths"),
    [(ARMS, (128, 256, 512, 1024, 2048)), (ARMS[:2], (4096, 131072)), (ARMS[:1], (64,)), (ARMS[:1], (1000, 2000))],
)
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...], lengths: tuple[int, ...]) -> None:
    table = fake_needles(arms, seeds=2, lengths=lengths, depths=9, questions=3)
    for figure in (plots.needle_heatmap(table, title=TITLE), plots.found_over_length(table, title=TITLE)):
        assert_readable(figure)
        assert not overlapping_ticks(figure)


def meshes(figure: Figure) -> list[np.ndarray]:
    return [mesh.get_array() for ax in figure.axes for mesh in ax.collections if isinstance(mesh, QuadMesh)][:-1]


def test_a_cell_is_the_mean_over_seeds_and_questions_with_the_start_of_the_text_on_top() -> None:
    table = fake_needles(lengths=(128, 2048), depths=3)
    figure = plots.needle_heatmap(table, arms=["yarn", "none", "not run"])
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["yarn", "none"]
    for arm, cells in zip(("yarn", "none"), meshes(figure), strict=True):
        of_arm = table[table["arm"] == arm]
        expected = [
            [of_arm[(of_arm["depth"] == d) & (of_arm["length"] == n)]["correct"].mean() for n in (128, 2048)]
            for d in (0.0, 0.5, 1.0)
        ]
        np.testing.assert_allclose(np.reshape(cells, (3, 2)), expected)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0%", "50%", "100%"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["128", "2K"]


def test_one_model_has_one_panel() -> None:
    table = fake_needles(("none",), seeds=1).drop(columns=["arm", "seed"])
    assert len(meshes(plots.needle_heatmap(table))) == 1
    figure = plots.found_over_length(table)
    assert len(seen(figure.axes[0])) == 2  # the model, and chance
    assert_readable(figure)


def test_lines_are_means_with_bands_of_their_intervals() -> None:
    table = fake_needles()
    (ax,) = plots.found_over_length(table, arms=["none", "yarn"]).axes
    shares = found_by_length(table)
    line = next(line for line in ax.lines if line.get_label() == "yarn")
    of_yarn = shares[shares["arm"] == "yarn"]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), of_yarn["mean"])
    ends = ax.collections[1].get_paths()[0].vertices
    assert ends[:, 1].min() == pytest.approx(of_yarn["low"].min())  # type: ignore[index]
    assert ends[:, 1].max() == pytest.approx(of_yarn["high"].max())  # type: ignore[index]
    level = next(line for line in ax.lines if line.get_label() == "chance")
    assert list(np.asarray(level.get_ydata(), dtype=float)) == [1 / 64, 1 / 64]


def test_each_family_has_a_panel() -> None:
    families = {"trained": ARMS[:4], "none_tuned": ARMS[4:]}
    table = fake_needles(ARMS, seeds=2, lengths=(128, 256, 512))
    figure = plots.found_over_length(table, families=families, arms=ARMS, title=TITLE)
    assert_readable(figure)
    assert not overlapping_ticks(figure)
    for ax, (baseline, arms) in zip(figure.axes, families.items(), strict=True):
        assert ax.get_title(loc="left") == f"{baseline} and compared with it"
        assert [line.get_label() for line in seen(ax)] == [*arms, "chance"]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {*ARMS, "chance"}
