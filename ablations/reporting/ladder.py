"""A study along a ladder of scales: how its differences change as models and budgets grow; all of it is exploratory.

`python -m ablations.run sweep=NAME scale=[smoke,tiny,small]` runs every rung and writes `runs/<sweep>/ladder/report`.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Console

from ablations.reporting.decisions import decisions_section
from ablations.reporting.write import failures
from ablations.trials.results import results_of
from ablations.trials.trials import Study
from dsv2.plots.ladder import difference_over_compute, loss_over_compute
from dsv2.report.page import Section, Table, write_page
from dsv2.report.pictures import Drawing, pictures
from dsv2.statistics.ladder import FEWEST_RUNGS, POWER_LAW, Ladder, Prediction, fit_ladder, held_out, predict
from dsv2.statistics.paired import Interval
from dsv2.statistics.trends import Trend, trend_rows, trends
from dsv2.statistics.verdicts import IncompleteStudy
from dsv2.storage.rundir import runs_root
from dsv2.study.plan import Plan

LOSS = "val/loss"
SCALES = ("smoke", "tiny", "small", "base", "paper")


def runs_of(studies: Sequence[Study]) -> pd.DataFrame:
    """Return one row per trial of every rung: scale, arm, seed, status, total training flops and the loss."""
    frames = []
    for study in studies:
        flops = {row["arm"]: row["flops_per_token"] * row["tokens"] for row in study.budgets()}
        frame = results_of(study).reindex(columns=["arm", "seed", "status", LOSS])
        frames.append(frame.assign(scale=study.scale, flops=frame["arm"].map(flops)))
    return pd.concat(frames, ignore_index=True)


def report_ladder(studies: Sequence[Study], console: Console) -> None:
    """Write the report of all rungs and print its headline; the rung after the last is predicted.

    If any trial is missing, the report only lists what is missing.
    """
    first = studies[0]
    folder = runs_root() / first.name / "ladder" / "report"
    title = f"{first.name} along {', '.join(study.scale for study in studies)}"
    runs, sections = runs_of(studies), list[Section]()
    headline, then = [], _next(studies)
    try:
        for baseline in dict.fromkeys(map(first.baseline_of, first.arms)):
            arms = [arm for arm in first.arms if first.baseline_of(arm) == baseline]
            if len(arms) > 1:
                text, more = _family(runs, arms, baseline, studies, then)
                headline += text
                sections += more
        if (decided := decisions_section(studies, first.file.judged)) is not None:
            sections.append(decided)
            headline.append(decided.paragraphs[1])
    except IncompleteStudy as error:
        missing = ", ".join(error.missing)
        headline, sections = [f"Nothing to compare: {len(error.missing)} trials have no result: {missing}."], []
    path = write_page(folder, title, " ".join(headline), sections, {"table": runs.to_csv(index=False)})
    console.print(" ".join(headline))
    console.print(f"ladder:  {path}", soft_wrap=True)


def _next(studies: Sequence[Study]) -> Plan | None:
    """Plan the rung after the last, if there is one."""
    last = studies[-1]
    after = SCALES[SCALES.index(last.scale) + 1 :] if last.scale in SCALES else ()
    return Plan(last.node | {"name": last.name}, after[0], last.overrides) if after else None


def _family(
    runs: pd.DataFrame, arms: Sequence[str], baseline: str, studies: Sequence[Study], then: Plan | None
) -> tuple[list[str], list[Section]]:
    """Return the headline and the sections of the arms that share a baseline."""
    same: dict[str, Any] = {"arms": arms, "baseline": baseline, "loss": LOSS}
    runs = runs[runs["arm"].isin(list(arms))]
    by_arm = trends(runs, **same)
    ladder = fit_ladder(runs, **same) if len(studies) >= FEWEST_RUNGS else None
    foretold: list[Prediction] = []
    if ladder and len(ladder.scales) > FEWEST_RUNGS:
        foretold += held_out(runs, scale=ladder.scales[-1], **same)
    if ladder and then is not None:
        flops = {row["arm"]: float(row["flops_per_token"] * row["tokens"]) for row in then.budgets()}
        foretold += predict(
            ladder, {arm: flops[arm] for arm in arms}, scale=then.scale, seeds=len(then.seeds), baseline=baseline
        )
    text = ladder_text(by_arm, ladder, foretold)
    drawings = [
        Drawing(
            f"loss_over_compute_{baseline}",
            "Loss over training compute, one point per run. " + (CURVES if ladder else NO_CURVE),
            partial(loss_over_compute, runs, ladder, foretold=foretold, loss=LOSS),
        ),
        Drawing(
            f"difference_over_compute_{baseline}",
            f"Loss minus that of {baseline}, paired by seed, with 95% t intervals at each rung.",
            partial(difference_over_compute, runs, ladder, baseline, foretold=foretold, loss=LOSS),
        ),
    ]
    drawn, problems = pictures(drawings)
    sections = [Section(f"Against {baseline}, rung by rung", text, [Table(*trend_rows(by_arm))], drawn)]
    if ladder:
        sections.append(Section("Curves", [], [Table(*fit_rows(ladder))]))
    if foretold:
        sections.append(Section("Predictions", [], [Table(*prediction_rows(foretold))]))
    return text[1:2], [*sections, *failures(problems)]


# ---- text and tables -------------------------------------------------------------------------------------------------


LADDER_RULE = (
    "Curves are least-squares fits of log loss over training compute C (FLOPs per token times tokens), "
    "loss = E + A C^-alpha with E >= 0, or a power law without E if there are three rungs. Intervals are 95% "
    "bootstrap intervals over seeds, the same seeds for all arms, widened for small samples; they cover seed noise, "
    "not a wrong form. A rung held out of the fit tests the predictions. Differences at the rungs have plain 95% t "
    "intervals, of one comparison each; verdicts are in the report of each scale."
)


CURVES = "Curves: fits; diamonds: predictions."
NO_CURVE = (
    f"No curve is fitted and nothing predicted: a power law has {FEWEST_RUNGS - 1} parameters, so it passes through "
    f"any {FEWEST_RUNGS - 1} rungs; it takes {FEWEST_RUNGS}."
)


def ladder_text(by_arm: Sequence[Trend], ladder: Ladder | None, foretold: Sequence[Prediction]) -> list[str]:
    """Return paragraphs: how differences change over scale, the fitted form, and how predictions compared."""
    paragraphs = [LADDER_RULE if ladder else NO_CURVE]
    if by_arm:
        arms = "; ".join(f"{trend.arm} {trend.text}" for trend in by_arm)
        paragraphs.append(f"Exploratory, over {', '.join(by_arm[0].scales)}: {arms}.")
    if ladder is None:
        return paragraphs
    form = next(iter(ladder.fits.values())).form
    noted = "; ".join(f"{arm}: {fit.note}" for arm, fit in ladder.fits.items() if fit.note)
    few = ", since three rungs do not test three parameters" if form == POWER_LAW else ""
    notes = f" Notes: {noted}." if noted and form != POWER_LAW else ""
    paragraphs.append(f"Fitted over {', '.join(ladder.scales)}: loss = {form}{few}.{notes}")
    tested = [prediction for prediction in foretold if prediction.inside is not None]
    if tested:
        misses = ", ".join(_of(prediction) for prediction in tested if not prediction.inside)
        inside = sum(bool(prediction.inside) for prediction in tested)
        missed = f"; outside: {misses}" if misses else ""
        paragraphs.append(
            f"Held-out rung {tested[0].scale}: {inside} of {len(tested)} observations inside their interval{missed}."
        )
    return paragraphs


def fit_rows(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the fitted curves, one row per arm."""
    rows = [
        [
            arm,
            fit.form,
            "none" if fit.form == POWER_LAW else _shown(fit.e, fit.e_interval),
            _shown(fit.a, fit.a_interval),
            _shown(fit.alpha, fit.alpha_interval),
            fit.note,
        ]
        for arm, fit in ladder.fits.items()
    ]
    return ["arm", "loss =", "E [95%]", "A [95%]", "alpha [95%]", "note"], rows


def prediction_rows(foretold: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of predicted and observed values, one row per prediction."""
    rows = [
        [
            _of(prediction),
            prediction.scale,
            f"{prediction.flops:.2g}",
            str(prediction.seeds),
            _shown(prediction.predicted, Interval(prediction.low, prediction.high)),
            "not run" if math.isnan(prediction.observed) else f"{prediction.observed:.4g}",
            {True: "inside", False: "outside", None: ""}[prediction.inside],
        ]
        for prediction in foretold
    ]
    return ["quantity", "rung", "FLOPs", "seeds", "predicted [95%]", "observed", "observation"], rows


def _of(prediction: Prediction) -> str:
    return f"{prediction.arm} - {prediction.minus}" if prediction.minus else prediction.arm


def _shown(value: float, interval: Interval) -> str:
    return f"{value:.4g}" + ("" if math.isnan(interval.low) else f" [{interval.low:.4g}, {interval.high:.4g}]")
