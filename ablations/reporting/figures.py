"""The figures of a report, as PNG bytes with their captions."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ablations.reporting.summary import StudyText
from dsv2.plots import study as plots
from dsv2.plots.cost import loss_over_budgets
from dsv2.plots.factorial import factorial_forest
from dsv2.plots.load import device_load, load_heatmap
from dsv2.report.page import Picture, picture
from dsv2.statistics.factorial import Term
from dsv2.statistics.verdicts import Effect


def draw(
    study: StudyText,
    results: pd.DataFrame,
    metrics: pd.DataFrame,
    routing: pd.DataFrame | None,
    accounting: pd.DataFrame,
    effects: Sequence[Effect],
    terms: Sequence[Term],
    step_floor: Mapping[str, float],
    final_floor: Mapping[str, float],
) -> tuple[Picture, ...]:
    """Every figure that the tables allow: none of effects without a verdict, none of routing for dense models.

    `results` are the finished trials. See `write_report` for the floors.
    """
    arms, seeds = list(study.arms), len(study.seeds)
    over = f"mean and range over {seeds} seeds" if seeds > 1 else "one seed"
    metrics = metrics[metrics["arm"].isin(arms) & metrics["seed"].isin(list(study.seeds))]
    logged = set(metrics["metric"])
    pictures = []
    if any(effect.n > 1 for effect in effects):
        text = (
            f"Each arm minus {' or '.join(study.families())}, paired by seed, with 95% t intervals. Filled: better or "
            "worse after Holm's correction; square: equivalent within the margin (grey band); hollow: neither."
        )
        figure = plots.forest(effects, margins=study.margin, directions=study.metrics)
        pictures.append(picture("effects", text, figure))
    if terms:
        text = "Main effects and, below the line, interactions, with 95% t intervals. Filled: decided after Holm."
        pictures.append(picture("factors", text, factorial_forest(terms, directions=study.metrics)))
    for metric in dict.fromkeys([study.metric, "val/loss"]):
        if metric in results and results[metric].notna().any():
            text = f"{metric} of every seed at the end; bar: mean; grey lines join the arms of one seed."
            axes = plots.metric_by_arm(results, metric, floor=final_floor.get(metric), arms=arms)
            pictures.append(picture(_name(metric), text, axes))
    if "val/loss" in logged:
        axes = plots.loss_over_tokens(metrics, arms=arms)
        pictures.append(picture("loss", f"Validation loss over training, {over}.", axes))
        for baseline, family in study.families().items():
            if {baseline} < (set(metrics["arm"]) & set(family)):
                text = f"Validation loss minus that of {baseline} at the same seed, {over}."
                mine = metrics[metrics["arm"].isin(family)]
                axes = plots.difference_over_tokens(mine, baseline, arms=arms)
                name = "loss_difference" if baseline == study.baseline else f"loss_difference_{baseline}"
                pictures.append(picture(name, text, axes))
    if {"val/loss", "perf/tokens_per_s"} <= logged:
        text = f"Validation loss over tokens, training FLOPs and seconds, {over}."
        pictures.append(picture("budgets", text, loss_over_budgets(metrics, accounting, arms=arms)))
    if logged & set(plots.IMBALANCE):
        text = f"Balance over training, {over}" + ("; dashed: a router that chooses at random." if step_floor else ".")
        figure = plots.imbalance_over_training(metrics, floor=step_floor, arms=arms)
        pictures.append(picture("imbalance", text, figure))
    if routing is not None and len(routing):
        routing = routing[routing["arm"].isin(arms) & routing["seed"].isin(list(study.seeds))]
    if routing is not None and len(routing):
        seed = int(routing["seed"].min())
        text = (
            f"Load of each expert over training, seed {seed} alone: 1 (white) is the mean. Experts are sorted by their "
            "final load in each panel, busiest on top."
        )
        pictures.append(picture("expert_load", text, load_heatmap(routing, seed=seed, arms=arms)))
        text = (
            "Load of the devices at the last logged step, busiest first, mean over seeds and layers. Hatched: over the "
            "budget of capacity factor 1.0, with its share of all pairs."
        )
        pictures.append(picture("device_load", text, device_load(routing, arms=arms)))
    return tuple(pictures)


def _name(metric: str) -> str:
    return metric.replace("/", "_") + "_by_arm"
