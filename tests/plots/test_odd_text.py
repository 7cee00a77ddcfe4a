"""Names of users in figures: every figure draws them as they are written, whatever matplotlib would make of them."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

import dsv2
from dsv2 import plots
from dsv2.accounting.account import account
from dsv2.statistics.factorial import factorial
from dsv2.statistics.ladder import fit_ladder
from dsv2.statistics.verdicts import explore
from tests.references.analyses import changes, four_tokens, masked, shares
from tests.references.ladders import simulate
from tests.references.tables import fake

ODD = ("a$x_1^{$b", "$7 each $", "_hidden", "__x_y", r"50% \frac{", "{x} %s", "[b]&<i>", "a\x1bb", "64", "无")
PLAIN = tuple(name.replace("\x1b", "\\x1b") for name in ODD)


def of_study(name: str) -> Callable[[], object]:
    tables = fake(ODD[:6] if name != "drops_over_training" else (*ODD[:5], "$dropping"), seeds=2, layers=1, steps=4)
    results, metrics, routing, accounting = tables
    return {
        "loss_over_tokens": lambda: plots.loss_over_tokens(metrics, title=ODD[0]),
        "difference_over_tokens": lambda: plots.difference_over_tokens(metrics, ODD[0]),
        "imbalance_over_training": lambda: plots.imbalance_over_training(metrics),
        "metric_by_arm": lambda: plots.metric_by_arm(results),
        "load_heatmap": lambda: plots.load_heatmap(routing),
        "device_load": lambda: plots.device_load(routing),
        "losses_and_control": lambda: plots.losses_and_control(results),
        "collapse_over_training": lambda: plots.collapse_over_training(metrics),
        "load_at": lambda: plots.load_at(routing, 10),
        "drops_over_training": lambda: plots.drops_over_training(metrics),
        "loss_over_budgets": lambda: plots.loss_over_budgets(metrics, accounting),
        "loss_over_active": lambda: plots.loss_over_active(results, accounting),
    }[name]


STUDY = (
    *("loss_over_tokens", "difference_over_tokens", "imbalance_over_training", "metric_by_arm", "load_heatmap"),
    *("device_load", "losses_and_control", "collapse_over_training", "load_at", "drops_over_training"),
    *("loss_over_budgets", "loss_over_active"),
)


def drawn_names(figure: Figure, names: tuple[str, ...]) -> set[str]:
    """Draw the figure, and return which of the names are in it, as written and not as mathematics."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert not [text.get_text() for text in texts if text._preprocess_math(text.get_text())[1]]
    return {name for name in names if any(name in text.get_text().replace("\n", " ") for text in texts)}


@pytest.mark.parametrize("name", STUDY)
def test_arms_are_drawn_as_they_are_written(name: str) -> None:
    figure = of_study(name)()
    figure = figure.figure if isinstance(figure, Axes) else figure
    expected = set(PLAIN[:6])
    if name == "drops_over_training":
        expected = {*PLAIN[:5], "$dropping"}
    assert drawn_names(figure, (*PLAIN, "$dropping")) >= expected


def test_names_of_runs_domains_and_models_are_drawn_as_they_are_written() -> None:
    table = shares([1], 4)
    domains = dict(zip(["code", "english", "maths"], ODD[:3], strict=True))
    model = account(dsv2.load(["model=tiny"]).model, context=64)
    load = pd.DataFrame({"expert": [0, 1], "device": [0, 1], "load": [5, 3], "dropped": [1, 0]})
    bins = pd.DataFrame({"bin": [1, 2], "share": [0.1, 0.2], "dropped": [1, 2], "pairs": [10, 10]})
    fewer = changes([2, 1]).rename(columns={"model": "experts"})
    for figure, names in (
        (plots.domain_heatmap(table.assign(domain=table["domain"].map(domains)), title=ODD[1]), PLAIN[:3]),
        (plots.loss_over_masked(pd.concat(masked(name) for name in ODD)), PLAIN),
        (plots.loss_changes(changes(list(ODD))), PLAIN[1:]),
        (plots.loss_over_experts(fewer, against=(ODD[0], 2.0)), PLAIN[:1]),
        (plots.cache_over_context(dict.fromkeys(ODD, model)), PLAIN),
        (plots.load_profiles(dict.fromkeys(ODD, load)), PLAIN),
        (plots.drops_over_affinity(dict.fromkeys(ODD, bins)), PLAIN),
    ):
        figure = figure.figure if isinstance(figure, Axes) else figure
        assert drawn_names(figure, PLAIN) >= set(names)


def test_figures_of_statistics_draw_arms_as_they_are_written() -> None:
    tables = fake(ODD[:4], seeds=3, layers=1, steps=2)
    effects = explore(tables.results, "val/loss", arms=ODD[:4], baseline=ODD[0], seeds=[0, 1, 2])
    assert drawn_names(plots.forest(effects), PLAIN) >= set(PLAIN[1:4])
    design = {arm: {"$a$": i % 2, "_b": i // 2} for i, arm in enumerate(ODD[:4])}
    terms = factorial(tables.results, "val/loss", design, seeds=[0, 1, 2])
    assert drawn_names(plots.factorial_forest(terms), ("$a$", "_b")) == {"$a$", "_b"}
    ax = plots.interaction(tables.results, "val/loss", design, "$a$", "_b", seeds=[0, 1, 2])
    assert drawn_names(ax.figure, ("$a$", "_b=0", "_b=1")) == {"$a$", "_b=0", "_b=1"}


def test_a_ladder_draws_arms_as_they_are_written() -> None:
    runs = simulate(3).replace({"mha": ODD[0], "mla": ODD[2]})
    ladder = fit_ladder(runs, arms=[ODD[0], ODD[2]], baseline=ODD[0])
    for ax in (plots.loss_over_compute(runs, ladder), plots.difference_over_compute(runs, ladder, ODD[0])):
        assert drawn_names(ax.figure, PLAIN) == {PLAIN[0], PLAIN[2]}
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert any(label.startswith("10¹") for label in labels)


def test_axes_of_a_caller_that_were_drawn_before_are_no_exception() -> None:
    tables = fake(ODD[:3], seeds=2, layers=1, steps=2)
    figure, ax = plt.subplots()
    ax.plot([0, 1, 2])
    figure.canvas.draw()
    plots.metric_by_arm(tables.results, ax=ax)
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == list(PLAIN[:3])
    assert not any(label.get_parse_math() for label in labels)


def test_tokens_are_drawn_as_they_are_written() -> None:
    figure = plots.paint_tokens([*ODD[:2], "无", r"\$"], four_tokens(), title=ODD[1])
    figure.canvas.draw()
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert {*PLAIN[:2], "无", r"\$"} <= set(shown)
    assert not [text for text in figure.findobj(Text) if text._preprocess_math(text.get_text())[1]]
