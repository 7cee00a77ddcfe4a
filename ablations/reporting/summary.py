"""A study's verdict in sentences, and the closing table in a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ablations.reporting.findings import Findings
from ablations.reporting.words import StudyText, spread
from dsv2.metrics import quantity
from dsv2.report.terminal import add_row, open_table
from dsv2.statistics.verdicts import UNSEEN, Effect, decimals, difference_text, unseen

if TYPE_CHECKING:
    from rich.console import Console

ORDER = ("better", "worse", "identical", "equivalent", UNSEEN, "undecided", "none")
CELL_WIDTH = 16  # of a metric's column, in characters


def summary(findings: Findings) -> tuple[str, list[str]]:
    """Return the headline, and a sentence per metric with the study's own metric first."""
    study = findings.study
    if findings.missing:
        total = len(study.arms) * len(study.seeds)
        missing = ", ".join(findings.missing)
        return f"No verdict: {len(findings.missing)} of {total} trials have no result: {missing}.", []
    if len(study.seeds) < 2:
        return "No verdict: one seed per arm gives no interval, and a single difference is not evidence.", []
    if not findings.effects:
        return "No verdict: no arm can be compared with the baseline in the judged metrics.", []
    order = sorted(study.metrics, key=lambda metric: metric != study.metric)
    by_metric = {metric: [effect for effect in findings.effects if effect.metric == metric] for metric in order}
    sentences = {metric: _sentence(study, metric, effects) for metric, effects in by_metric.items() if effects}
    leading = (study.metric, "val/loss")
    lead = [text for metric, text in sentences.items() if metric in leading]
    alike = _alike({metric: effects for metric, effects in by_metric.items() if metric not in leading})
    return " ".join([f"{study.against}:", *lead, *alike]), list(sentences.values())


def said(findings: Findings) -> list[str]:
    """Return the lines printed in a terminal or notebook: how arms are compared, then a sentence per metric."""
    overall, sentences = summary(findings)
    return [f"{findings.study.against}:", *sentences] if sentences else [overall]


def _alike(effects_of: Mapping[str, Sequence[Effect]]) -> list[str]:
    """Return a sentence per verdict that all arms share, with the metrics in which they do."""
    metrics: dict[str, list[str]] = {}
    for metric, effects in effects_of.items():
        words = {_word_of(effect) for effect in effects}
        if len(words) == 1:
            metrics.setdefault(words.pop(), []).append(quantity(metric).name)
    return [f"Every arm {word} in {', '.join(metrics[word])}." for word in sorted(metrics, key=ORDER.index)]


def _sentence(study: StudyText, metric: str, effects: Sequence[Effect]) -> str:
    groups: dict[str, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(_word_of(effect), []).append(effect)
    parts = []
    for word in sorted(groups, key=ORDER.index):
        names = ", ".join(_named(effect) for effect in groups[word])
        within = f" within {study.margin[metric]:g}" if word == "equivalent" else ""
        limit = max(effect.detectable for effect in groups[word])
        missed = f"; differences below {limit:.2g} may have been missed" if word in (UNSEEN, "undecided") else ""
        parts.append(f"{word}{within}: {names}{missed}")
    return f"{quantity(metric).name} - {'; '.join(parts)}."


def _word_of(effect: Effect) -> str:
    return UNSEEN if effect.word == "undecided" and unseen(effect) else effect.word


def _named(effect: Effect) -> str:
    if effect.word == "identical":
        return effect.arm
    apart = ", no seed overlaps" if effect.separated and effect.word == "undecided" else ""
    return f"{effect.arm} ({effect.mean:+.{decimals(effect.low, effect.high)}f}{apart})"


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def print_verdict(findings: Findings, console: "Console") -> None:
    """Print a table of arms, loss and difference, one of the other metrics with their verdicts, and the sentences."""
    study, means = findings.study, findings.by_arm
    effects = {(effect.arm, effect.metric): effect for effect in findings.effects}
    main = "val/loss" if "val/loss" in study.metrics else study.metric
    minus = "minus baseline [95%]" if len(study.families()) > 1 else f"minus {study.baseline} [95%]"
    columns = ("arm", "n", quantity(main).name, minus, "verdict")
    table = open_table(columns, text=["verdict"], title=f"{study.name} ({study.scale})", ruled=True)
    for row in means.to_dict("records"):
        effect = effects.get((row["arm"], main))
        word = "baseline" if row["arm"] in study.families() else effect.word if effect else "no verdict"
        value = spread(row.get(f"{main} mean", math.nan), row.get(f"{main} sd", math.nan))
        difference = difference_text(effect.mean, effect.low, effect.high) if effect else ""
        add_row(table, [row["arm"], str(row["n"]), value, difference, word])
    console.print(table)

    others = [metric for metric in study.metrics if metric != main and f"{metric} mean" in means]
    per_row = max((console.width - max(map(len, study.arms)) - 4) // CELL_WIDTH, 1)  # metrics side by side
    blocks = -(-len(others) // per_row)
    for block in range(blocks):
        shown = others[block * len(others) // blocks : (block + 1) * len(others) // blocks]
        table = open_table(["arm", *(quantity(metric).name for metric in shown)], ruled=True)
        for row in means.to_dict("records"):
            cells = [spread(row[f"{metric} mean"], row[f"{metric} sd"]) for metric in shown]
            words = [effect.word if (effect := effects.get((row["arm"], metric))) else "" for metric in shown]
            lines = (f"{cell}\n{word}".strip() for cell, word in zip(cells, words, strict=True))
            add_row(table, [row["arm"], *lines])
        console.print(table)
    for line in said(findings):
        console.print(line)
