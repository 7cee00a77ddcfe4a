"""A study's verdicts in sentences, and the closing tables in a terminal."""

import math
from typing import TYPE_CHECKING

from ablations.reporting.findings import Findings
from ablations.reporting.words import number, spread
from dsv2.metrics import quantity
from dsv2.report.terminal import add_row, open_table
from dsv2.statistics.paired import ALPHA
from dsv2.statistics.verdicts import difference_text

if TYPE_CHECKING:
    from rich.console import Console

CELL_WIDTH = 16  # of a metric's column, in characters
NONE_DECLARED = "No verdict: the study compares no arm with another."


def summary(findings: Findings) -> tuple[str, list[str]]:
    """Return the headline, and a sentence per contrast in the order in which they were declared."""
    study = findings.study
    if findings.missing:
        total = len(study.arms) * len(study.seeds)
        missing = ", ".join(findings.missing)
        return f"No verdict: {len(findings.missing)} of {total} trials have no result: {missing}.", []
    if len(study.seeds) < 2:
        return "No verdict: one seed per arm gives no interval, and a single difference is not evidence.", []
    if findings.look.refused:
        return f"No verdict, all of it is exploratory: {findings.look.refused}.", []
    if not findings.verdicts:
        return NONE_DECLARED, []
    sentences = [
        f"{quantity(effect.metric).name}, {findings.pair(effect)} - {effect.text}." for effect in findings.verdicts
    ]
    return " ".join([f"{against(findings)}:", *sentences]), sentences


def said(findings: Findings) -> list[str]:
    """Return the lines printed in a terminal or notebook: how arms are compared, then a sentence per contrast."""
    overall, sentences = summary(findings)
    return [f"{against(findings)}:", *sentences] if sentences else [overall]


def against(findings: Findings) -> str:
    """Say how arms are compared, as the start of a sentence."""
    study = findings.study
    baselines = " and ".join(dict.fromkeys(effect.baseline for effect in findings.verdicts))
    several = "each interval" if len(findings.verdicts) > 1 else "interval"
    look, seeds = findings.look.number, len(study.seeds)
    return f"Against {baselines}, {seeds} paired seeds, look {look}, {several} at {level(findings)}"


def level(findings: Findings) -> str:
    """Format the confidence level of each interval of a contrast at this look."""
    return _percent(1 - findings.look.error)


def _percent(share: float) -> str:
    """Format a level near 1 with as many digits as its distance from 1 needs."""
    digits = 0 if share in (0.0, 1.0) else max(0, -1 - math.floor(math.log10(1 - share)))
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def look_text(findings: Findings) -> str:
    """Say which look at the study this is, what it spends, and what was looked at before."""
    look, seeds = findings.look, len(findings.study.seeds)
    count = max(len(findings.study.contrasts), 1)
    shared = f", shared by {count} contrasts" if count > 1 else ""
    if seeds > look.decided_at:
        text = f"This is look {look.number}, at {seeds} seeds; the study was to be decided at {look.decided_at}."
    else:
        text = f"This is look {look.number}, at {seeds} of the {look.decided_at} seeds at which the study is decided."
    text += (
        f" Its verdicts may err in {look.error * count:.2%} of studies{shared}, and those of all looks in at most "
        f"{ALPHA:.0%}: {'each' if count > 1 else 'the'} interval is at {level(findings)}."
    )
    if look.number > 1:
        text += " The study's seeds were extended or changed after a look, which a group-sequential rule accounts for."
    if look.elsewhere:
        times = "look" if look.elsewhere == 1 else "looks"
        text += f" {look.elsewhere} {times} at this study with other settings are recorded beside it."
    return text


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def print_verdict(findings: Findings, console: "Console") -> None:
    """Print the contrasts with their verdicts, then, as exploratory, the means and the differences of the loss."""
    study = findings.study
    title = f"{study.name} ({study.scale})"
    if findings.verdicts:
        minus = _minus(findings)
        columns = ("arm", "metric", f"{minus} [{level(findings)}]", "margin", "verdict")
        table = open_table(columns, text=["metric", "verdict"], title=f"{title}: contrasts", ruled=True)
        for effect in findings.verdicts:
            size = difference_text(effect.mean, effect.low, effect.high)
            add_row(
                table, [findings.pair(effect), quantity(effect.metric).name, size, number(effect.margin), effect.word]
            )
        console.print(table)
    _print_means(findings, console, f"{title}: means and single differences, exploratory")
    for line in said(findings):
        console.print(line)
    if findings.verdicts:
        console.print(look_text(findings))


def _minus(findings: Findings) -> str:
    return "minus baseline" if len(findings.study.families()) > 1 else f"minus {findings.study.baseline}"


def _print_means(findings: Findings, console: "Console", title: str) -> None:
    study, means = findings.study, findings.by_arm
    main = "val/loss" if "val/loss" in study.metrics else study.metric
    effects = {effect.arm: effect for effect in findings.effects if effect.metric == main}
    table = open_table(("arm", "n", quantity(main).name, f"{_minus(findings)} [95%]"), title=title, ruled=True)
    for row in means.to_dict("records"):
        effect = effects.get(row["arm"])
        value = spread(row.get(f"{main} mean", math.nan), row.get(f"{main} sd", math.nan))
        difference = difference_text(effect.mean, effect.low, effect.high) if effect else ""
        add_row(table, [row["arm"], str(row["n"]), value, difference])
    console.print(table)
    others = [metric for metric in study.metrics if metric != main and f"{metric} mean" in means]
    per_row = max((console.width - max(map(len, study.arms)) - 4) // CELL_WIDTH, 1)  # metrics side by side
    blocks = -(-len(others) // per_row)
    for block in range(blocks):
        shown = others[block * len(others) // blocks : (block + 1) * len(others) // blocks]
        table = open_table(["arm", *(quantity(metric).name for metric in shown)], ruled=True)
        for row in means.to_dict("records"):
            add_row(table, [row["arm"], *(spread(row[f"{m} mean"], row[f"{m} sd"]) for m in shown)])
        console.print(table)
