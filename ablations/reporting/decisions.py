"""Which decisions of a scale hold on the next, in the report of a ladder; and where a question is answered cheapest."""

import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console

from ablations.trials.results import results_of
from ablations.trials.trials import Study
from dsv2.metrics import quantity
from dsv2.report.page import Section, Table
from dsv2.report.terminal import add_row, open_table
from dsv2.statistics.decisions import (
    LEAST_CHANCE,
    Bin,
    Offer,
    Step,
    cheapest,
    compare,
    difference,
    earliest,
    offer,
)
from dsv2.statistics.paired import Interval

RULE = (
    "A scale decides between two arms if their mean difference is more than two standard errors from 0 and the "
    f"predicted chance of the same sign on the next scale is at least {LEAST_CHANCE:.0%}. The decision holds if the "
    "next scale has such a difference with the same sign. Intervals of shares are 95%, as if pairs of arms were "
    "independent, which those with an arm in common are not."
)


def decisions_section(studies: Sequence[Study], metrics: Mapping[str, str]) -> Section | None:
    """Return the section on the decisions of every pair of arms in all judged metrics; None with a single scale."""
    rungs = rungs_of(studies)
    pairs = list(itertools.combinations(studies[0].arms, 2))
    steps, bins = compare(rungs, list(metrics), pairs)
    if not steps:
        return None
    return Section(
        "Decisions that hold on the next scale",
        decision_text(steps),
        [
            Table(*step_rows(steps)),
            Table(*calibration_rows(bins)),
        ],
    )


def rungs_of(studies: Sequence[Study]) -> dict[str, pd.DataFrame]:
    """Return the finished trials of each scale that has any."""
    tables = {study.scale: results_of(study) for study in studies}
    finished = {scale: table[table["status"] == "finished"] for scale, table in tables.items()}
    return {scale: table for scale, table in finished.items() if len(table)}


def decision_text(steps: Sequence[Step]) -> list[str]:
    """Return paragraphs: the rule, the share over all metrics, and which metric decides earliest."""
    held, against = sum(step.held for step in steps), sum(step.reversed for step in steps)
    decided = sum(step.decided for step in steps)
    share = f" ({held / (held + against):.0%} of those that it decides)" if held + against else ""
    text = [
        RULE,
        f"Of {decided} decisions over all metrics, {held} hold on the next scale and {against} are reversed{share}.",
    ]
    order = [quantity(metric).name for metric in earliest(steps)]
    if order:
        rule = f"Metrics by how early they decide, at least {LEAST_CHANCE:.0%} of their decisions holding"
        text.append(f"{rule}: {', '.join(order)}.")
    else:
        text.append("No metric has decisions that hold on the next scale.")
    return text


def step_rows(steps: Sequence[Step]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of decisions, one row per metric and scale."""
    rows = [
        [
            quantity(step.metric).name,
            f"{step.rung} to {step.after}",
            str(step.pairs),
            str(step.decided),
            str(step.held),
            str(step.reversed),
            "" if math.isnan(step.share) else f"{step.share:.0%}{_ends(step.interval)}",
            f"{step.same_sign} of {step.pairs}",
        ]
        for step in steps
    ]
    return ["metric", "scales", "pairs", "decided", "hold", "reversed", "share that holds", "same sign"], rows


def calibration_rows(bins: Sequence[Bin]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the calibration of predicted chances."""
    rows = [
        [f"{b.low:.0%} to {b.high:.0%}", str(b.pairs), f"{b.predicted:.0%}", f"{b.observed:.0%}{_ends(b.interval)}"]
        for b in bins
    ]
    return ["predicted chance of the same sign", "pairs", "mean", "observed"], rows


def _ends(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f" [{interval.low:.0%}, {interval.high:.0%}]"


# ---- a plan ----------------------------------------------------------------------------------------------------------


def print_plan(studies: Sequence[Study], console: Console) -> None:
    """Print for each contrast which scale, seeds and tokens answer it at the least compute, from what is stored.

    Runs nothing. Raises ValueError if no scale has two finished seeds of the arms of any contrast.
    """
    offers = offers_of(studies)
    if not offers:
        first = studies[0]
        scales = ",".join(study.scale for study in studies)
        raise ValueError(
            f"plan: no stored runs of {first.name} at {scales}; a pilot of two seeds is enough, as in "
            f"python -m ablations.run sweep={first.name} scale={studies[0].scale} seeds=[0,1]"
        )
    table = open_table(["contrast", "scale", "pilot", "seeds", "tokens per run", "FLOPs", "chance", "answers"])
    by_scale = {study.scale: study for study in studies}
    for (arm, baseline, metric), several in offers.items():
        best, name = cheapest(several), f"{arm} - {baseline}, {quantity(metric).name}"
        for each in several:
            add_row(table, [name, *_cells(each, by_scale[each.scale].tokens_of(arm)), _answer(each, best)])
    console.print(table)
    console.print(
        "pilot: mean difference and standard deviation of the stored runs; seeds: that detect it with 80% power; "
        f"chance: of the same sign on the next scale. A scale answers if its chance is at least {LEAST_CHANCE:.0%}."
    )


def offers_of(studies: Sequence[Study]) -> dict[tuple[str, str, str], list[Offer]]:
    """Return what each scale takes for each contrast (arm, baseline, metric), for those that have been run."""
    rungs, offers = rungs_of(studies), dict[tuple[str, str, str], list[Offer]]()
    for study in studies:
        flops = {row["arm"]: float(row["flops_per_token"] * row["tokens"]) for row in study.budgets()}
        for arm, baseline, metric, *_ in study.contrasts:
            rung = rungs.get(study.scale)
            known = None if rung is None or metric not in rung else difference(rung, metric, arm, baseline)
            if known is not None:
                offers.setdefault((arm, baseline, metric), []).append(
                    offer(study.scale, known, flops[arm] + flops[baseline])
                )
    return offers


def _cells(each: Offer, tokens: int) -> list[str]:
    pilot = f"{each.known.mean:+.4g}, sd {each.known.sd:.2g}, n {each.known.n}"
    seeds = "over 1,000" if each.seeds is None else str(each.seeds)
    flops = "" if math.isinf(each.flops) else f"{each.flops:.2g}"
    return [each.scale, pilot, seeds, f"{tokens:,}", flops, f"{each.chance:.2f}"]


def _answer(each: Offer, best: Offer | None) -> str:
    return "cheapest" if each is best else "yes" if each.answers else "no"
