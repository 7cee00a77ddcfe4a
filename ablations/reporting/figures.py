"""The figures of a report with their captions."""

from collections.abc import Callable, Collection, Iterator
from functools import partial

import pandas as pd

from ablations.reporting.findings import Findings
from ablations.reporting.positions import trained_length
from ablations.reporting.rates import curves, curves_table
from ablations.reporting.summary import level
from dsv2.accounting.deployed import published_caches
from dsv2.metrics import quantity
from dsv2.plots.alignment import answers_over_training
from dsv2.plots.calibration import false_positive_rates
from dsv2.plots.cost import cache_over_context, loss_over_budgets, metric_over_cache
from dsv2.plots.factorial import factorial_forest
from dsv2.plots.load import device_load, load_heatmap
from dsv2.plots.needle import found_over_length, needle_heatmap
from dsv2.plots.positions import loss_over_position
from dsv2.plots.rates import metric_over_lr
from dsv2.plots.study import (
    IMBALANCE,
    difference_over_tokens,
    forest,
    imbalance_over_training,
    loss_over_tokens,
    metric_by_arm,
)
from dsv2.report.pictures import Drawing, Picture, pictures
from dsv2.statistics.budgets import telling


def draw(
    findings: Findings, formats: Collection[str] = (), begun: Callable[[str], object] = lambda text: None
) -> tuple[list[Picture], list[str]]:
    """Draw all figures that the data allow: effects only if no trial is missing, routing only for MoE models.

    Also returns a sentence about each figure that failed; the others are drawn. `begun` is told how far it is.
    """
    return pictures(
        [
            *_verdicts(findings),
            *_values(findings),
            *_needles(findings),
            *_positions(findings),
            *_rates(findings),
            *_answers(findings),
            *_training(findings),
            *_routing(findings),
            *_caches(findings),
        ],
        formats,
        begun,
    )


def _verdicts(findings: Findings) -> Iterator[Drawing]:
    study = findings.study
    if findings.false_rates:
        text = "Share of studies drawn from identical trials that say anything false, with 95% intervals."
        yield Drawing("false_verdicts", text, partial(false_positive_rates, findings.false_rates))
    if findings.effects or findings.verdicts:
        text = f"Each arm minus {' or '.join(study.families())}, paired by seed. "
        if findings.verdicts:
            text += (
                f"In blue, the contrasts, with intervals of {level(findings)} that hold together; grey band: the "
                "margin. "
            )
        text += "In grey, exploratory differences, with 95% intervals of one comparison each."
        figure = partial(
            forest, findings.effects, verdicts=findings.verdicts, directions=study.metrics, arms=list(study.arms)
        )
        yield Drawing("effects", text, figure)
    if findings.terms:
        text = "Main effects and, below the line, interactions, with 95% intervals of one term each; exploratory."
        yield Drawing("factors", text, partial(factorial_forest, findings.terms, directions=study.metrics))


def _values(findings: Findings) -> Iterator[Drawing]:
    results, arms = findings.finished, list(findings.study.arms)
    for metric in dict.fromkeys([findings.study.metric, "val/loss"]):
        if metric in results and results[metric].notna().any():
            text = f"Final {quantity(metric).name} of every seed; bar: mean; grey lines connect the arms of one seed."
            axes = partial(metric_by_arm, results, metric, floor=findings.final_floor.get(metric), arms=arms)
            yield Drawing(f"{metric.replace('/', '_')}_by_arm", text, axes)


def _needles(findings: Findings) -> Iterator[Drawing]:
    table, arms = findings.shown(findings.needles), list(findings.study.arms)
    if len(table):
        text = (
            "Share of hidden sentences found by length and depth, mean over seeds. Depth 0% is the start of the text, "
            "100% right before the question."
        )
        yield Drawing("needle_heatmap", text, partial(needle_heatmap, table, arms=arms))
        text = "Share of hidden sentences found over length, mean over depths, with 95% t intervals over seeds."
        families = findings.study.families()
        yield Drawing("needle_over_length", text, partial(found_over_length, table, families=families, arms=arms))


def _positions(findings: Findings) -> Iterator[Drawing]:
    if length := trained_length(findings.finished):
        study = findings.study
        families = {baseline: family for baseline, family in study.families().items() if len(family) > 1}
        text = (
            f"Loss over the position in the sequence, mean and range over {len(study.seeds)} seeds; the same tokens at "
            f"every position. Dashed: the trained length, {length} tokens."
        )
        figure = partial(loss_over_position, findings.finished, length, families=families, arms=list(study.arms))
        yield Drawing("loss_by_position", text, figure)


def _rates(findings: Findings) -> Iterator[Drawing]:
    if shown := curves(findings):
        metric, seeds = next(iter(shown.values())).metric, len(next(iter(shown.values())).values[0])
        of = f"of {findings.study.lr_from}, " if findings.study.curves else ""
        text = (
            f"Final {quantity(metric).name} over the learning rate, {of}mean and range over {seeds} seeds. Rings: the "
            "best rate of each."
        )
        best = {name: curve.best for name, curve in shown.items()}
        yield Drawing("learning_rates", text, partial(metric_over_lr, curves_table(shown), metric, chosen=best))


def _answers(findings: Findings) -> Iterator[Drawing]:
    metrics, seeds = findings.shown(findings.metrics), len(findings.study.seeds)
    if "grpo/reward" in set(metrics["metric"]):
        text = (
            "The answers that policies are trained on, as they were drawn: verdicts, rewards of reward models, "
            f"divergence from the reference and length; mean and range over {seeds} seeds. A policy that is trained on "
            "a reward model hacks it where that reward rises and the verdicts fall."
        )
        yield Drawing("answers", text, partial(answers_over_training, metrics, arms=list(findings.study.arms)))


def _training(findings: Findings) -> Iterator[Drawing]:
    study, arms, seeds = findings.study, list(findings.study.arms), list(findings.study.seeds)
    over = f"mean and range over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    metrics = findings.shown(findings.metrics)
    logged = set(metrics["metric"])
    if "val/loss" in logged:
        yield Drawing("loss", f"Validation loss over training, {over}.", partial(loss_over_tokens, metrics, arms=arms))
        steps = metrics[metrics["metric"] == "val/loss"].groupby("arm")["step"].nunique()
        trained = set(steps.index[steps > 1])  # others have no curve
        for baseline, family in study.families().items():
            if {baseline} < trained & set(family):
                of_family = metrics[metrics["arm"].isin(family)]
                name = "loss_difference" if baseline == study.baseline else f"loss_difference_{baseline}"
                bars = "mean with 95% t intervals" if len(seeds) > 1 else "of one seed"
                text = f"Validation loss minus that of {baseline} at the same seed, {bars}; bars stand side by side."
                yield Drawing(name, text, partial(difference_over_tokens, of_family, baseline, arms=arms))
    if {"val/loss", "perf/tokens_per_s"} <= logged:
        told = telling(metrics, findings.accounting)
        named = [name for budget, name in (("flops", "training FLOPs"), ("seconds", "seconds")) if budget in told]
        if named:  # else it would be the figure of the loss again
            text = f"Validation loss over tokens and {' and '.join(named)}, {over}."
            text += "" if "seconds" in told else " Seconds vary between trials of one arm as much as between arms."
            yield Drawing("budgets", text, partial(loss_over_budgets, metrics, findings.accounting, arms=arms))
    if logged & set(IMBALANCE):
        dashed = "; dashed: a random router." if findings.step_floor else "."
        figure = partial(imbalance_over_training, metrics, floor=findings.step_floor, arms=arms)
        yield Drawing("imbalance", f"Balance over training, {over}{dashed}", figure)


def _routing(findings: Findings) -> Iterator[Drawing]:
    if findings.routing is None or (routing := findings.shown(findings.routing)).empty:
        return
    arms = list(findings.study.arms)
    routing = _in_tokens(routing, findings.metrics)
    seed = int(routing["seed"].min())
    text = (
        f"Load of each expert over training, seed {seed} only: 1 (white) is the mean. In each panel, experts are "
        "sorted by final load, highest on top."
    )
    yield Drawing("expert_load", text, partial(load_heatmap, routing, seed=seed, arms=arms))
    text = (
        "Load of the devices at the last logged step, highest first, mean over seeds and layers. Hatched: load above "
        "the budget of capacity factor 1.0, with its share of all pairs."
    )
    yield Drawing("device_load", text, partial(device_load, routing, arms=arms))


def _in_tokens(routing: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Add the tokens trained on up to each step, unless they are not known of all."""
    at = metrics[["arm", "seed", "step", "tokens"]].drop_duplicates(["arm", "seed", "step"])
    merged = routing.merge(at, on=["arm", "seed", "step"], how="left")
    return routing if merged["tokens"].isna().any() else merged.astype({"tokens": int})


def _caches(findings: Findings) -> Iterator[Drawing]:
    if not findings.caches:
        return
    results, held = findings.finished, "deployed/kv_bytes_per_token"
    if held in results and results[held].notna().any():
        metric = findings.study.metric
        text = f"Final {quantity(metric).name} over what the cache allocates per token; mean and range over seeds."
        figure = partial(metric_over_cache, results, metric=metric, arms=list(findings.study.arms))
        yield Drawing("cache", text, figure)
    text = "Cache of one sequence of the published models over its length: 16 bits, or 6 with scales and offsets."
    yield Drawing("cache_over_context", text, partial(cache_over_context, published_caches()))
