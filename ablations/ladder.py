"""A study along a ladder of scales: does its verdict hold as models and budgets grow, and can the next rung be told?

`python -m ablations.run sweep=NAME scale=[smoke,tiny,small]` runs every rung and writes `runs/<sweep>/ladder/report`.
"""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from ablations.store import results_of
from ablations.studies import Study
from dsv2.analysis.ladder import Prediction, fit_ladder, held_out, predict
from dsv2.analysis.ladder_table import fit_rows, ladder_text, prediction_rows
from dsv2.analysis.plots_ladder import difference_over_compute, loss_over_compute
from dsv2.analysis.trends import trend_rows, trends
from dsv2.analysis.verdicts import IncompleteStudy
from dsv2.page import Section, Table, picture, write_page
from dsv2.paths import runs_root
from dsv2.study import Plan

LOSS = "val/loss"
SCALES = ("smoke", "tiny", "small", "base", "paper")


def runs_of(studies: Sequence[Study]) -> pd.DataFrame:
    """One row a trial of every rung: scale, arm, seed, status, flops (of its whole training) and the loss."""
    frames = []
    for study in studies:
        flops = {row["arm"]: row["flops_per_token"] * row["tokens"] for row in study.budgets()}
        frame = results_of(study).reindex(columns=["arm", "seed", "status", LOSS])
        frames.append(frame.assign(scale=study.scale, flops=frame["arm"].map(flops)))
    return pd.concat(frames, ignore_index=True)


def report_ladder(studies: Sequence[Study], console: Console) -> None:
    """Write the report of the rungs and print what it says; the rung after the last is predicted.

    A rung with a missing trial has no verdict, so a ladder that has one says what is missing and nothing else.
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
    except IncompleteStudy as error:
        headline, sections = [f"No verdict: {error}."], []
    path = write_page(folder, title, " ".join(headline), sections, {"table": runs.to_csv(index=False)})
    console.print(" ".join(headline), highlight=False, markup=False)
    console.print(f"ladder:  {path}", highlight=False, soft_wrap=True)


def _next(studies: Sequence[Study]) -> Plan | None:
    """The plan of the rung after the last one, where there is one."""
    last = studies[-1]
    after = SCALES[SCALES.index(last.scale) + 1 :] if last.scale in SCALES else ()
    return Plan(last.source, after[0], last.overrides) if after else None


def _family(
    runs: pd.DataFrame, arms: Sequence[str], baseline: str, studies: Sequence[Study], then: Plan | None
) -> tuple[list[str], list[Section]]:
    """The arms that share a baseline: what is said, and the sections of them."""
    same = {"arms": arms, "baseline": baseline, "loss": LOSS}
    found, ladder = trends(runs, **same), fit_ladder(runs, **same)  # type: ignore[arg-type]
    told: list[Prediction] = []
    if len(ladder.scales) > 2:
        told += held_out(runs, scale=ladder.scales[-1], **same)  # type: ignore[arg-type]
    if then is not None:
        flops = {row["arm"]: float(row["flops_per_token"] * row["tokens"]) for row in then.budgets()}
        told += predict(
            ladder, {arm: flops[arm] for arm in arms}, scale=then.scale, seeds=len(then.seeds), baseline=baseline
        )
    text = ladder_text(found, ladder, told)
    drawn = [
        picture(
            f"loss_over_compute_{baseline}",
            "Loss over training compute, a point a run; curves are fitted, diamonds foretold.",
            loss_over_compute(runs, ladder, told=told, loss=LOSS),
        ),
        picture(
            f"difference_over_compute_{baseline}",
            f"Loss minus that of {baseline}, paired by seed, with 95% t intervals at each rung.",
            difference_over_compute(runs, ladder, baseline, told=told, loss=LOSS),
        ),
    ]
    sections = [
        Section(f"Against {baseline}, rung by rung", text, [Table(*trend_rows(found))], drawn),
        Section("Curves", [], [Table(*fit_rows(ladder))]),
    ]
    if told:
        sections.append(Section("Predictions", [], [Table(*prediction_rows(told))]))
    return text[1:2], sections
