"""The sections of a report, each with paragraphs, tables and figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.reporting.adjusted import adjusted
from ablations.reporting.findings import Findings
from ablations.reporting.summary import summary
from ablations.reporting.words import number, spread
from dsv2.metrics import BUDGETS, chance, quantity
from dsv2.report.page import Picture, Section, Table
from dsv2.statistics.budgets import loss_at_equal
from dsv2.statistics.calibration import TrialsRate
from dsv2.statistics.factorial import FACTORIAL_RULE, Term, factorial_rows, factorial_text
from dsv2.statistics.paired import ALPHA, detectable_in_sd
from dsv2.statistics.verdicts import RULE, Effect, difference_text, two_digits


def sections_of(findings: Findings, pictures: Sequence[Picture]) -> list[Section]:
    """Return all sections that the stored data allow, in order."""
    study = findings.study
    headline, sentences = summary(findings)
    others = [text for text in sentences if text not in headline]
    arms = "; ".join(f"{arm}: {text}" for arm, text in study.arms.items())
    sections = [
        Section("The other metrics", others) if others else None,
        _calibration(findings.false_rates) if findings.false_rates else None,
        Section("Question", [study.question, f"Predicted: {study.prediction}", f"Arms - {arms}."]),
        _results(findings),
        Section("Figures", [], (), pictures) if pictures else None,
        Section("Effects", [RULE], [_effect_table(findings.effects)]) if findings.effects else None,
        _factors(findings.terms) if findings.terms else None,
        _probes(findings),
        _at_equal(findings),
        _detectable(findings) if findings.effects else None,
        Section("Held equal", [], [_equality(findings)]),
        adjusted(study),
        Section("Published", [study.published]) if study.published else None,
        Section("Where the effect is expected to show", [study.shows_at]) if study.shows_at else None,
        Section("Accounting", [], [Table(list(findings.accounting.columns), _cells(findings.accounting))]),
        _provenance(findings),
    ]
    return [section for section in sections if section is not None]


def _results(findings: Findings) -> Section:
    study, ran = findings.study, findings.finished
    total, seconds = len(study.arms) * len(study.seeds), ran["seconds"].sum()
    text = f"Mean ± standard deviation over seeds. {len(ran)} of {total} trials finished, {seconds:,.0f} s in total."
    judged = [metric for metric in study.metrics if f"{metric} mean" in findings.by_arm]
    rows = [
        [row["arm"], str(row["n"]), *(spread(row[f"{m} mean"], row[f"{m} sd"]) for m in judged)]
        for row in findings.by_arm.to_dict("records")
    ]
    floor = findings.final_floor
    if any(metric in floor for metric in judged):
        rows.append(["random router", "", *(number(floor.get(metric)) for metric in judged)])
    if any(chance(metric) is not None for metric in judged):
        rows.append(["chance", "", *(number(chance(metric)) for metric in judged)])
    header = ["arm", "n", *(quantity(metric).name for metric in judged)]
    return Section("Results by arm", [text], [Table(header, rows)])


def _calibration(rates: Sequence[TrialsRate]) -> Section:
    first = rates[0]
    text = (
        f"All {first.trials} trials differ only in their seeds, so any verdict of better or worse is false. The table "
        f"gives the share of false verdicts in studies of {first.arms} arms and {first.seeds} seeds drawn from them, "
        f"{first.draws:,} per metric; the nominal rate is 5%. Draws share trials, so the intervals are as wide as for "
        "the stated number of independent studies."
    )
    rows = [
        [
            quantity(rate.metric).name,
            f"{rate.rate:.1%}",
            f"{rate.low:.1%} to {rate.high:.1%}",
            f"{rate.effective:,.0f}",
            "above 5%" if rate.low > ALPHA else "compatible with 5%",
        ]
        for rate in rates
    ]
    return Section(
        "False verdicts", [text], [Table(["metric", "false", "95% interval", "independent studies", "result"], rows)]
    )


def _factors(terms: Sequence[Term]) -> Section:
    text = [FACTORIAL_RULE, *factorial_text(terms)]
    return Section("Main effects and interactions", text, [Table(*factorial_rows(terms))])


def _probes(findings: Findings) -> Section | None:
    """Report the share of seeds that learned each task: the transition is sharp, so a mean would hide it."""
    names = list(map(str, findings.results.columns))
    probes = [name.removesuffix("/steps_to_half") for name in names if name.endswith("/steps_to_half")]
    if not probes:
        return None
    rows = []
    for arm in findings.study.arms:
        trials = findings.finished[findings.finished["arm"] == arm]
        cells = []
        for probe in probes:
            steps = trials[f"{probe}/steps_to_half"]
            reached = steps[steps < math.inf]
            median = f", median step {reached.median():,.0f}" if len(reached) else ""
            accuracy = spread(trials[f"{probe}/accuracy"].mean(), math.nan)
            cells.append(f"{len(reached)} of {len(trials)}{median}; {accuracy}")
        rows.append([arm, *cells])
    text = (
        "Every arm was also trained on each task alone. The table gives how many seeds reached an accuracy of one half "
        "and when, then the mean final accuracy. Such tasks are learned abruptly, so with few seeds read the share."
    )
    return Section("Tasks", [text], [Table(["arm", *probes], rows)])


def _at_equal(findings: Findings) -> Section | None:
    """Compare losses at equal tokens, FLOPs and seconds, since the ranking depends on which is held equal."""
    if not {"val/loss", "perf/tokens_per_s"} <= set(findings.metrics["metric"]):
        return None
    table = loss_at_equal(findings.metrics, findings.accounting)
    means, sds = table.groupby("arm").mean(numeric_only=True), table.groupby("arm").std(numeric_only=True)
    columns = ("per_token", "per_flop", "per_second")
    rows = [
        [arm, *(spread(float(means[column][arm]), float(sds[column][arm])) for column in columns)]
        for arm in findings.study.arms
        if arm in means.index
    ]
    text = (
        f"Validation loss (mean ± standard deviation) at the largest budget that every trial reached: "
        f"{table.attrs['tokens']:,.0f} tokens, {table.attrs['flops']:.3g} training FLOPs, "
        f"{table.attrs['seconds']:.3g} seconds. Seconds were measured with several trials running at once: if other "
        "work slowed some arms and not others, they do not reflect the cost of an arm."
    )
    return Section("Per token, per FLOP and per second", [text], [Table(["arm", "tokens", "FLOPs", "seconds"], rows)])


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [[number(value) for value in row] for row in table.itertuples(index=False)]


def _effect_table(effects: Sequence[Effect]) -> Table:
    rows = [
        [
            quantity(effect.metric).name,
            effect.arm,
            difference_text(effect.mean, effect.low, effect.high),
            two_digits(effect.p_holm),
            effect.word,
            effect.note,
        ]
        for effect in effects
    ]
    return Table(["metric", "arm", "difference [95% t]", "p (Holm)", "verdict", "note"], rows)


def _detectable(findings: Findings) -> Section:
    study, rows = findings.study, []
    for metric in dict.fromkeys(effect.metric for effect in findings.effects):
        smallest = [effect.detectable for effect in findings.effects if effect.metric == metric]
        margin = number(study.margin.get(metric))
        rows.append([quantity(metric).name, number(min(smallest)), number(max(smallest)), margin])
    family = max(len(study.arms) - 1, 1)
    arms = f"{family} arm{'s' if family > 1 else ''}"
    in_sd = detectable_in_sd(len(study.seeds), ALPHA / family)
    text = (
        f"With {len(study.seeds)} seeds and {arms} compared, a true difference of {in_sd:.2g} standard "
        "deviations of the paired differences is detected with a power of 80%; smaller ones are often missed. "
        "For the spread observed here, from the least to the most noisy arm:"
    )
    table = Table(["metric", "smallest detectable, from", "to", "margin"], rows)
    return Section("What could have been detected", [text], [table])


def _equality(findings: Findings) -> Table:
    """Tabulate which budgets the study holds equal, and how far compared arms differ in each."""
    study, rows, budgets = findings.study, [], findings.accounting.set_index("arm")
    for column in BUDGETS:
        exempt = [arm for arm in study.arms if column in study.differs.get(arm, ())]
        values = budgets[column].drop(exempt) if column in study.equal else budgets[column]
        families = [values[values.index.isin(family)] for family in study.families().values()]
        apart = max(1 - family.min() / family.max() for family in families if len(family))
        held = f"yes, except {', '.join(exempt)}" if exempt else "yes"
        rows.append(
            [
                quantity(column).label,
                held if column in study.equal else "",
                number(values.min()),
                number(values.max()),
                "equal" if apart == 0 else f"{apart:.2%} apart",
            ]
        )
    return Table(["budget", "held equal", "lowest arm", "highest arm", "compared arms"], rows)


def _provenance(findings: Findings) -> Section:
    nested = findings.provenance
    flat = pd.json_normalize(dict(nested)).to_dict("records")[0] if nested else {}
    text = "The code had uncommitted changes: the commit alone does not reproduce these results."
    table = Table(["key", "value"], [[str(key), str(value)] for key, value in flat.items()])
    return Section("Provenance", [text] if _uncommitted(nested) else [], [table])


def _uncommitted(provenance: Any) -> bool:
    """Whether any trial's code had uncommitted changes; `provenance` has a list where trials differ."""
    if isinstance(provenance, Mapping):
        return bool(provenance.get("dirty")) or any(map(_uncommitted, provenance.values()))
    return isinstance(provenance, list) and any(map(_uncommitted, provenance))
