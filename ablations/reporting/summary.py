"""What a study's results say: its effects, its verdict in sentences, and the closing table of a terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from dsv2.metrics import quantity
from dsv2.statistics.paired import ALPHA
from dsv2.statistics.verdicts import UNSEEN, Effect, IncompleteStudy, compare, decimals, difference_text, unseen

if TYPE_CHECKING:
    from rich.console import Console

ORDER = ("better", "worse", "identical", "equivalent", UNSEEN, "undecided", "none")


@dataclass(frozen=True, kw_only=True)
class StudyText:
    """What a report says of a study beside its numbers; anything with these attributes will do."""

    name: str
    scale: str
    question: str
    prediction: str
    metric: str  # the one the question is about
    metrics: Mapping[str, str]  # every judged metric to its better direction, "lower" or "higher"
    equal: Sequence[str]  # what is held equal
    margin: Mapping[str, float]  # metric to the difference that would not matter
    baseline: str
    arms: Mapping[str, str]  # in order, each with a line that describes it
    seeds: Sequence[int]
    published: str | None = None
    shows_at: str | None = None
    baselines: Mapping[str, str] = field(default_factory=dict)  # arm -> its own baseline, where it is another one
    differs: Mapping[str, Sequence[str]] = field(default_factory=dict)  # arm -> what it alone does not hold equal
    identical: bool = False  # an A/A study: its arms differ in their seeds alone
    levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # arm -> level of each factor, of a grid

    def families(self) -> dict[str, list[str]]:
        """Baseline -> the arms that are compared with it, itself among them; Holm corrects over these."""
        found: dict[str, list[str]] = {}
        for arm in self.arms:
            found.setdefault(self.baselines.get(arm, self.baseline), []).append(arm)
        return found


def chosen(study: StudyText, results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study's own arms and seeds."""
    return results[results["arm"].isin(list(study.arms)) & results["seed"].isin(list(study.seeds))]


def finished(results: pd.DataFrame) -> pd.DataFrame:
    return results[results["status"] == "finished"]


def study_effects(study: StudyText, results: pd.DataFrame) -> list[Effect]:
    """Every arm against the baseline in every judged metric. Raises `IncompleteStudy` where a trial has no result."""
    return [
        effect
        for metric, direction in study.metrics.items()
        for baseline, arms in study.families().items()
        for effect in compare(
            chosen(study, results),
            metric,
            arms=arms,
            baseline=baseline,
            seeds=list(study.seeds),
            direction=direction,
            margin=study.margin.get(metric),
        )
    ]


def summary(study: StudyText, effects: Sequence[Effect], missing: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The overall sentence, and one a metric with the study's own metric first."""
    if missing:
        total = len(study.arms) * len(study.seeds)
        return f"No verdict: {len(missing)} of {total} trials have no result: {', '.join(missing)}.", []
    if len(study.seeds) < 2:
        return "No verdict: one seed an arm gives no interval, and a difference of one seed is not evidence.", []
    if not effects:
        return "No verdict: there is no arm to compare with the baseline in the judged metrics.", []
    order = sorted(study.metrics, key=lambda metric: metric != study.metric)
    found = {metric: [effect for effect in effects if effect.metric == metric] for metric in order}
    sentences = {metric: _sentence(study, metric, those) for metric, those in found.items() if those}
    lead = [text for metric, text in sentences.items() if metric in (study.metric, "val/loss")]
    alike = _alike({metric: those for metric, those in found.items() if metric not in (study.metric, "val/loss")})
    return " ".join([f"{against(study)}:", *lead, *alike]), list(sentences.values())


def _alike(found: Mapping[str, Sequence[Effect]]) -> list[str]:
    """A sentence for each word that all arms share in some metrics."""
    metrics: dict[str, list[str]] = {}
    for metric, effects in found.items():
        words = {_said(effect) for effect in effects}
        if len(words) == 1:
            metrics.setdefault(words.pop(), []).append(quantity(metric).short)
    return [f"Every arm {word} in {', '.join(metrics[word])}." for word in sorted(metrics, key=ORDER.index)]


def against(study: StudyText) -> str:
    baselines = " and ".join(study.families())
    return f"Against {baselines}, {len(study.seeds)} paired seeds, p < {ALPHA} after Holm's correction"


def _sentence(study: StudyText, metric: str, effects: Sequence[Effect]) -> str:
    groups: dict[str, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(_said(effect), []).append(effect)
    parts = []
    for said in sorted(groups, key=ORDER.index):
        names = ", ".join(_named(effect) for effect in groups[said])
        within = f" within {study.margin[metric]:g}" if said == "equivalent" else ""
        limit = max(effect.detectable for effect in groups[said])
        missed = f"; smaller than {limit:.2g} would not have been seen" if said in (UNSEEN, "undecided") else ""
        parts.append(f"{said}{within}: {names}{missed}")
    return f"{metric} - {'; '.join(parts)}."


def _said(effect: Effect) -> str:
    return UNSEEN if effect.word == "undecided" and unseen(effect) else effect.word


def _named(effect: Effect) -> str:
    if effect.word == "identical":
        return effect.arm
    apart = ", no seed overlaps" if effect.separated and effect.word == "undecided" else ""
    return f"{effect.arm} ({effect.mean:+.{decimals(effect.low, effect.high)}f}{apart})"


def arm_statistics(study: StudyText, results: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: n finished seeds, then mean and standard deviation over seeds of each judged metric."""
    done = finished(chosen(study, results))
    judged = [metric for metric in study.metrics if metric in done]
    rows = []
    for arm in study.arms:
        mine = done[done["arm"] == arm]
        row: dict[str, Any] = {"arm": arm, "n": len(mine)}
        for metric in judged:
            row |= {f"{metric} mean": mine[metric].mean(), f"{metric} sd": mine[metric].std(ddof=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def number(value: Any) -> str:
    """A number as a table shows it; an empty string for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, int | float) and not hasattr(value, "dtype"):
        return str(value)
    if float(value).is_integer() and (abs(value) >= 1 or value == 0):
        return f"{int(value):,}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def spread(mean: float, sd: float) -> str:
    """mean ± standard deviation, as far as there are any."""
    fixed = "" if math.isnan(mean) else f"{mean:.3f}"
    return fixed if math.isnan(sd) else f"{fixed} ± {sd:.3f}"


def difference(effect: Effect | None) -> str:
    """The mean difference with its 95% t interval; nothing where there is none to judge."""
    return difference_text(effect.mean, effect.low, effect.high) if effect and effect.n > 1 else ""


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def verdict_table(study: StudyText, results: pd.DataFrame, console: "Console | None" = None) -> None:
    """Print arms, loss and difference, then the balance metrics with a verdict in each cell, then the sentences."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    try:
        effects, missing = study_effects(study, results), []
    except IncompleteStudy as error:
        effects, missing = [], error.missing
    found = {(effect.arm, effect.metric): effect for effect in effects}
    means = arm_statistics(study, results)
    main = "val/loss" if "val/loss" in study.metrics else study.metric
    others = [metric for metric in study.metrics if metric != main and f"{metric} mean" in means]

    table = Table(title=f"{study.name} ({study.scale})", title_justify="left")
    for header in (
        "arm",
        "n",
        main,
        "minus baseline [95%]" if len(study.families()) > 1 else f"minus {study.baseline} [95%]",
        "verdict",
    ):
        table.add_column(header, justify="left" if header in ("arm", "verdict") else "right")
    for row in means.to_dict("records"):
        arm, effect = row["arm"], found.get((row["arm"], main))
        word = "baseline" if arm in study.families() else _word(effect) or "no verdict"
        value = spread(row.get(f"{main} mean", math.nan), row.get(f"{main} sd", math.nan))
        table.add_row(arm, str(row["n"]), value, difference(effect), word)
    console.print(table)
    room = max((console.width - max(map(len, study.arms)) - 4) // 16, 1)  # columns of metrics side by side
    tables = -(-len(others) // room)
    for i in range(tables):
        balance, shown = Table(), others[i * len(others) // tables : (i + 1) * len(others) // tables]
        balance.add_column("arm", no_wrap=True)
        for metric in shown:
            balance.add_column(quantity(metric).short, justify="right", min_width=13)
        for row in means.to_dict("records"):
            arm = row["arm"]
            values = [spread(row[f"{metric} mean"], row[f"{metric} sd"]) for metric in shown]
            words = [_word(found.get((arm, metric))) for metric in shown]
            balance.add_row(arm, *(f"{v}\n{w}".strip() for v, w in zip(values, words, strict=True)))
        console.print(balance)
    overall, sentences = summary(study, effects, missing)
    for text in [f"{against(study)}:", *sentences] if sentences else [overall]:
        console.print(text, highlight=False, markup=False)


def _word(effect: Effect | None) -> str:
    return effect.word if effect and effect.n > 1 else ""
