"""The sections of a report, each with paragraphs, tables and figures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.reporting.adjusted import adjusted
from ablations.reporting.caches import cache_section
from ablations.reporting.findings import Findings
from ablations.reporting.needles import needles
from ablations.reporting.positions import by_position
from ablations.reporting.rates import learning_rates
from ablations.reporting.summary import level, look_text
from ablations.reporting.words import number, spread
from dsv2.metrics import BUDGETS, chance, quantity
from dsv2.report.page import Section, Table
from dsv2.report.pictures import Picture
from dsv2.statistics.budgets import loss_at_equal
from dsv2.statistics.factorial import FACTORIAL_RULE, Term, factorial_rows
from dsv2.statistics.paired import (
    ALPHA,
    MOST_SEEDS,
    detectable_in_sd,
    sd_limit,
    seeds_for_equivalence,
    seeds_needed,
)
from dsv2.statistics.verdicts import RULE, Effect, difference_text

EXPLORATORY = (
    "Not among the contrasts that were declared before the study was run. Each interval is a plain 95% t interval of "
    "one comparison: of many comparisons of equal arms, one in twenty excludes 0. What is seen here is a reason for "
    "another study, not a result of this one."
)


def sections_of(findings: Findings, pictures: Sequence[Picture]) -> list[Section]:
    """Return all sections that the stored data allow, in order; the question and the verdicts stand before them."""
    study = findings.study
    sections = [
        Section("Figures", [], (), pictures) if pictures else None,
        _verdicts(findings) if findings.verdicts else None,
        _calibration(findings) if findings.false_rates else None,
        Section("Arms", [], [Table(["arm", "what it is"], [[arm, about] for arm, about in study.arms.items()])]),
        _results(findings),
        by_position(findings),
        Section("Exploratory: other differences", [EXPLORATORY], [_effect_table(findings.effects)])
        if findings.effects
        else None,
        _factors(findings.terms) if findings.terms else None,
        needles(findings),
        _probes(findings),
        _at_equal(findings),
        _planning(findings) if findings.verdicts else None,
        learning_rates(findings),
        Section("Held equal", [], [_equality(findings)]),
        adjusted(study),
        Section("Published", [study.published]) if study.published else None,
        Section("Where the effect is expected to show", [study.shows_at]) if study.shows_at else None,
        cache_section(findings.caches),
        _accounting(findings.accounting),
        _names(findings),
        _provenance(findings),
    ]
    return [section for section in sections if section is not None]


def _verdicts(findings: Findings) -> Section:
    rows = [
        [
            quantity(effect.metric).label,
            effect.arm,
            effect.baseline,
            difference_text(effect.mean, effect.low, effect.high),
            number(effect.margin),
            effect.word,
        ]
        for effect in findings.verdicts
    ]
    tables = [Table(["metric", "arm", "against", f"difference [{level(findings)} each]", "margin", "verdict"], rows)]
    if len(findings.look.past) > 1:
        tables.append(_looks(findings))
    return Section("Verdicts", [RULE, look_text(findings)], tables)


def _looks(findings: Findings) -> Table:
    """Tabulate all looks at the study with these settings and the words that they gave."""
    rows = [
        [
            str(number) + (" (this one)" if number == findings.look.number else ""),
            past.date,
            ", ".join(map(str, past.seeds)),
            f"{past.error:.2%}",
            "; ".join(f"{name}: {word}" for name, word in past.words.items()),
        ]
        for number, past in enumerate(findings.look.past, 1)
    ]
    return Table(["look", "date", "seeds", "may err in", "verdicts then"], rows)


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


def _calibration(findings: Findings) -> Section:
    rates = findings.false_rates
    first = rates[0]
    arms = first.contrasts // max(len(rates) - 1, 1) + 1
    text = (
        f"{first.trials} trials differ only in their seeds, so any verdict of better or worse on them is false. The "
        f"table gives the share of studies of {arms} arms and {first.seeds} seeds drawn from them, {first.draws:,} in "
        "each row, that say anything false: studies whose contrasts are all arms in all metrics, then studies of one "
        "metric. Draws share trials, so the intervals are as wide as for the stated number of independent studies."
    )
    rows = [
        [
            quantity(rate.metric).name if rate.metric else "all metrics together",
            str(rate.contrasts),
            f"{rate.rate:.1%}",
            f"{rate.low:.1%} to {rate.high:.1%}",
            f"{rate.effective:,.0f}",
            "above 5%" if rate.low > ALPHA else "compatible with 5%",
        ]
        for rate in rates
    ]
    header = ["metric", "contrasts", "false", "95% interval", "independent studies", "result"]
    return Section("False verdicts", [text, *_paired(findings)], [Table(header, rows)])


def _paired(findings: Findings) -> Iterator[str]:
    """Say of the other arms of an A/A study, which have the baseline's seeds, whether they have its numbers too."""
    study, trials = findings.study, findings.finished.set_index(["arm", "seed"])
    metrics = [metric for metric in study.metrics if metric in trials]
    for arm in study.arms:
        if arm not in study.identical:
            values, baseline = trials.loc[arm, metrics], trials.loc[study.baseline, metrics]
            different = [quantity(m).name for m in metrics if not values[m].equals(baseline[m].loc[values.index])]
            same = f"the same numbers in all {len(metrics)} metrics"
            result = f"other numbers in {', '.join(different)}: pairing is broken" if different else same
            yield f"{arm}, which has the seeds of {study.baseline}, has {result}."


def _factors(terms: Sequence[Term]) -> Section:
    return Section("Exploratory: main effects and interactions", [FACTORIAL_RULE], [Table(*factorial_rows(terms))])


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
    return Section("Exploratory: tasks", [text], [Table(["arm", *probes], rows)])


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
        if arm in means.index and means.loc[arm, list(columns)].notna().any()  # others begin beyond these budgets
    ]
    if len(rows) < 2:
        return None
    text = (
        f"Validation loss (mean ± standard deviation) at the largest budget that every trial reached: "
        f"{table.attrs['tokens']:,.0f} tokens, {table.attrs['flops']:.3g} training FLOPs, "
        f"{table.attrs['seconds']:.3g} seconds. Seconds were measured with several trials running at once: if other "
        "work slowed some arms and not others, they do not reflect the cost of an arm."
    )
    return Section("Per token, per FLOP and per second", [text], [Table(["arm", "tokens", "FLOPs", "seconds"], rows)])


def _accounting(table: pd.DataFrame) -> Section:
    kept = table.drop(columns="about", errors="ignore")
    header = [quantity(str(name)).label for name in kept.columns]
    rows = [[number(value) for value in row] for row in kept.itertuples(index=False)]
    return Section("Accounting", [], [Table(header, rows)])


def _names(findings: Findings) -> Section:
    """Tabulate what every metric of the report is called, in which unit, and under which key it is logged."""
    rows = [
        [quantity(metric).name, quantity(metric).brief, quantity(metric).unit, better, metric]
        for metric, better in findings.study.metrics.items()
    ]
    return Section("Names and units", [], [Table(["metric", "short", "unit", "better is", "logged as"], rows)])


def _effect_table(effects: Sequence[Effect]) -> Table:
    rows = [
        [
            quantity(effect.metric).name,
            effect.arm,
            effect.baseline,
            difference_text(effect.mean, effect.low, effect.high),
        ]
        for effect in effects
    ]
    return Table(["metric", "arm", "against", "difference [95% each]"], rows)


def _planning(findings: Findings) -> Section:
    """Say what this look could find, and how many seeds would settle each contrast at the next."""
    look, n = findings.look, len(findings.study.seeds)
    if look.error > 0:
        found = (
            f"At this look, a true difference of {detectable_in_sd(n, look.error):.2g} standard deviations of the "
            "paired differences is found with a power of 80%, in any one contrast. "
        )
    else:
        found = ""
    text = (
        f"{found}For a further look, the table gives how many seeds find a difference as large as the margin, and how "
        "many show equivalence if the arms are equal, each with a power of 80%: from the number for the standard "
        f"deviation seen in these {n} seeds to that for its upper 80% limit, which is the one to plan with."
    )
    rows = [
        [
            quantity(effect.metric).name,
            findings.pair(effect),
            f"{number(effect.sd)} (up to {number(sd_limit(effect.sd, n))})",
            number(effect.margin),
            *(_seeds(how, effect, n, look.next_error) for how in (seeds_needed, seeds_for_equivalence)),
        ]
        for effect in findings.verdicts
        if effect.sd > 0
    ]
    header = ["metric", "arm", "sd of differences", "margin", "seeds to find the margin", "seeds to show equivalence"]
    return Section("Planning", [text], [Table(header, rows)])


def _seeds(how: Callable[..., int | None], effect: Effect, n: int, error: float) -> str:
    if math.isnan(effect.margin):
        return ""
    counts = [how(effect.margin, sd, error) for sd in (effect.sd, sd_limit(effect.sd, n))]
    low, high = (f"{count:,}" if count else f"over {MOST_SEEDS:,}" for count in counts)
    return low if low == high else f"{low} to {high}"


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
