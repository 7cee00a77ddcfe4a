"""Figures of cost draw what the tables and accounts say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import dsv2
from dsv2 import plots
from dsv2.accounting.account import Account
from dsv2.plots.cost import AXES
from tests.references.figures import TITLE, assert_readable, overlapping_ticks
from tests.references.tables import SIX, Tables, fake

PUBLISHED = pd.DataFrame({"name": ["theirs"], "active_params": [4e5], "value": [5.0]})


def accounts() -> dict[str, Account]:
    models = {name: dsv2.load([f"model={name}"]).model for name in ("v2", "v2_lite", "deepseek_67b")}
    return {name: dsv2.account(model) for name, model in models.items()}


def with_caches(tables: Tables) -> pd.DataFrame:
    """Results of arms whose caches allocate 60, 90, 135 ... bytes per token."""
    arms = list(tables.accounting["arm"])
    sizes = {arm: 60 * 1.5**place for place, arm in enumerate(arms)}
    return tables.results.assign(**{"deployed/kv_bytes_per_token": tables.results["arm"].map(sizes)})


@pytest.mark.parametrize(
    "arms", [SIX, ("none", "paper"), tuple("abcdefgh"), ("none", "paper_dropping"), (*"abcdefg", "h_dropping")]
)
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...]) -> None:
    tables = fake(arms, seeds=3, steps=4)
    for figure in (
        plots.loss_over_budgets(tables.metrics, tables.accounting, title=TITLE),
        plots.loss_over_active(tables.results, tables.accounting, published=PUBLISHED, title=TITLE).figure,
        plots.cache_over_context(accounts(), title=TITLE).figure,
        plots.metric_over_cache(with_caches(tables), title=TITLE).figure,
    ):
        assert isinstance(figure, Figure)
        assert_readable(figure)
        assert not overlapping_ticks(figure)
        assert all(ax.get_xlabel() for ax in figure.axes)


def test_overlapping_labels_would_be_noticed() -> None:
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.set_xticks([0, 0.1, 0.2], labels=["a long label"] * 3)
    assert overlapping_ticks(figure)


def test_loss_over_budgets_moves_an_arm_by_what_a_token_costs(six: Tables) -> None:
    dear = six.accounting.assign(flops_per_token=[1e6, 2e6, 1e6, 1e6, 1e6, 1e6])
    slow = (six.metrics["metric"] == "perf/tokens_per_s") & (six.metrics["arm"] == "expert")
    metrics = six.metrics.assign(value=six.metrics["value"].where(~slow, six.metrics["value"] / 2))
    tokens, flops, seconds = plots.loss_over_budgets(metrics, dear).axes
    lines = {line.get_label(): line for line in flops.lines}
    np.testing.assert_allclose(lines["expert"].get_xdata(), 2 * np.asarray(lines["none"].get_xdata()))
    shared = {line.get_label(): line for line in tokens.lines}["expert"]
    np.testing.assert_allclose(lines["expert"].get_ydata(), shared.get_ydata())
    assert [ax.get_xlabel() for ax in (tokens, flops, seconds)] == list(AXES.values())
    assert lines["reached by every trial"].get_xdata()[0] == 80 * 1024 * 1e6  # type: ignore[index]


def test_axes_that_say_the_same_as_tokens_are_left_out(six: Tables) -> None:
    (tokens,) = plots.loss_over_budgets(six.metrics, six.accounting).axes
    assert tokens.get_xlabel() == AXES["tokens"]


def test_published_points_are_hollow_and_named(six: Tables) -> None:
    ax = plots.loss_over_active(six.results, six.accounting, published=PUBLISHED)
    hollow = next(line for line in ax.lines if line.get_label() == "published")
    assert hollow.get_markerfacecolor() == "white"
    assert [text.get_text() for text in ax.texts] == ["theirs"]
    with pytest.raises(ValueError, match="active_params for none"):
        plots.loss_over_active(six.results, six.accounting[1:])


def test_cache_grows_with_the_context_by_what_a_token_takes() -> None:
    ax = plots.cache_over_context(accounts(), longest=4096)
    v2 = next(line for line in ax.lines if str(line.get_label()).startswith("v2:"))
    length, size = (np.asarray(data)[-1] for data in v2.get_data())
    assert length == pytest.approx(4096)
    assert size == pytest.approx(4096 * 60 * (512 + 64) * 2)  # layers x (latent + RoPE) x bytes
    assert "69.1 kB per token" in str(v2.get_label())


def test_an_arm_stands_at_the_bytes_of_its_cache(six: Tables) -> None:
    """An arm whose cache was not measured is left out."""
    results = with_caches(six)
    results.loc[results["arm"] == "paper", "deployed/kv_bytes_per_token"] = np.nan
    ax = plots.metric_over_cache(results, arms=list(SIX))
    points = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert set(points) == set(SIX) - {"paper"}
    values = results[results["arm"] == "expert"]["val/loss"]
    assert float(np.asarray(points["expert"].get_xdata())[0]) == 60 * 1.5 ** list(six.accounting["arm"]).index("expert")
    assert float(np.asarray(points["expert"].get_ydata())[0]) == pytest.approx(values.mean())
