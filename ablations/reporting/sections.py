"""The sections of a report: paragraphs, a table and figures each, out of the tables that the trials left behind."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.reporting.summary import StudyText, arm_statistics, finished, number, spread
from dsv2.metrics import BUDGETS, chance, quantity
from dsv2.report.page import Picture, Section, Table
from dsv2.statistics.budgets import loss_at_equal
from dsv2.statistics.calibration import TrialsRate, from_trials
from dsv2.statistics.factorial import FACTORIAL_RULE, Term, factorial, factorial_rows, factorial_text
from dsv2.statistics.paired import ALPHA, detectable_in_sd
from dsv2.statistics.verdicts import RULE, Effect, difference_text, two_digits

FALSE_DRAWS = 1000  # studies drawn from an A/A study's trials
FALSE_CAPTION = "Share of studies drawn from identical trials that call an arm better or worse, with 95% intervals."


def sections_of(
    study: StudyText,
    results: pd.DataFrame,
    metrics: pd.DataFrame,
    effects: Sequence[Effect],
    terms: Sequence[Term],
    rates: Sequence[TrialsRate],
    accounting: pd.DataFrame,
    provenance: Mapping[str, Any],
    others: list[str],
    pictures: Sequence[Picture],
    floor: Mapping[str, float],
) -> list[Section]:
    """Every section that the tables allow, in the order of a report."""
    arms = "; ".join(f"{arm}: {text}" for arm, text in study.arms.items())
    ran = finished(results)
    trials = (
        f"{len(ran)} of {len(study.arms) * len(study.seeds)} trials finished, {ran['seconds'].sum():,.0f} s in all."
    )
    flat = pd.json_normalize(dict(provenance)).to_dict("records")[0] if provenance else {}
    changed = any(str(key).endswith("dirty") and bool(value) for key, value in flat.items())
    dirty = ["The code had uncommitted changes: the commit alone does not reproduce this."] if changed else []
    sections = [
        Section("The other metrics", others) if others else None,
        _calibration(rates) if rates else None,
        Section("Question", [study.question, f"Predicted: {study.prediction}", f"Arms - {arms}."]),
        Section(
            "Results by arm", [f"Mean ± standard deviation over seeds. {trials}"], [_arm_table(study, results, floor)]
        ),
        Section("Figures", [], (), pictures) if pictures else None,
        Section("Effects", [RULE], [_effect_table(effects)]) if effects else None,
        _factors(terms) if terms else None,
        _probes(study, results),
        _at_equal(study, metrics, accounting),
        Section("What could have been detected", *_detectable(study, effects)) if effects else None,
        Section("Held equal", [], [_equality(study, accounting)]),
        Section("Published", [study.published]) if study.published else None,
        Section("Where the effect is expected to show", [study.shows_at]) if study.shows_at else None,
        Section("Accounting", [], [Table(list(accounting.columns), _cells(accounting))]),
        Section("Provenance", dirty, [Table(["what", "value"], [[str(k), str(v)] for k, v in flat.items()])]),
    ]
    return [section for section in sections if section is not None]


def design_of(study: StudyText) -> dict[str, dict[str, Any]]:
    """Arm to its level of each factor that varies, by the factor's last word; empty for a study that is no grid."""
    factors = {
        arm: {key.rpartition(".")[2]: level for key, level in cell.items()} for arm, cell in study.levels.items()
    }
    varied = [name for name in next(iter(factors.values()), {}) if len({str(c[name]) for c in factors.values()}) > 1]
    return {arm: {name: cell[name] for name in varied} for arm, cell in factors.items()} if varied else {}


def factorial_terms(study: StudyText, results: pd.DataFrame) -> list[Term]:
    """Main effects and interactions in every judged metric, of a study whose arms are a grid."""
    design = design_of(study)
    if not design:
        return []
    return [
        term
        for metric, direction in study.metrics.items()
        if metric in results
        for term in factorial(results, metric, design, seeds=list(study.seeds), direction=direction)
    ]


def false_verdicts(study: StudyText, results: pd.DataFrame) -> list[TrialsRate]:
    """How often identical arms would be told apart in a study of 5 seeds (fewer where there are few trials)."""
    done = finished(results)
    arms = max(2, min(len(study.arms), 4))
    seeds = min(5, len(done) // (2 * arms))
    if seeds < 2:
        return []
    return [from_trials(done, metric, seeds, arms, FALSE_DRAWS) for metric in study.metrics if metric in done]


def _calibration(rates: Sequence[TrialsRate]) -> Section:
    first = rates[0]
    text = (
        f"All {first.trials} trials are alike but for their seeds, so any verdict of better or worse is false. Studies "
        f"of {first.arms} arms and {first.seeds} seeds drawn from them, {first.draws:,} a metric, tell equal arms "
        "apart this often; 5% is promised. Intervals allow for draws that share trials: they are as sure as so many "
        "independent studies."
    )
    rows = [
        [
            quantity(rate.metric).short,
            f"{rate.rate:.1%}",
            f"{rate.low:.1%} to {rate.high:.1%}",
            f"{rate.effective:,.0f}",
            "above 5%" if rate.low > ALPHA else "compatible with 5%",
        ]
        for rate in rates
    ]
    return Section(
        "False verdicts", [text], [Table(["metric", "false", "95% interval", "independent studies", "that is"], rows)]
    )


def _factors(terms: Sequence[Term]) -> Section:
    text = [FACTORIAL_RULE, *factorial_text(terms)]
    return Section("Main effects and interactions", text, [Table(*factorial_rows(terms))])


def _probes(study: StudyText, results: pd.DataFrame) -> Section | None:
    """Tasks are learned in a sharp transition, so a mean over seeds hides what a share of seeds tells."""
    names = list(map(str, results.columns))
    probes = [name.removesuffix("/steps_to_half") for name in names if name.endswith("/steps_to_half")]
    if not probes:
        return None
    rows = []
    for arm in study.arms:
        mine, cells = finished(results[results["arm"] == arm]), []
        for probe in probes:
            steps = mine[f"{probe}/steps_to_half"]
            made = steps[steps < math.inf]
            median = f", median step {made.median():,.0f}" if len(made) else ""
            cells.append(f"{len(made)} of {len(mine)}{median}; {spread(mine[f'{probe}/accuracy'].mean(), math.nan)}")
        rows.append([arm, *cells])
    text = (
        "Every arm was also trained on each task alone. How many seeds came to answer half of the questions and when, "
        "then the mean accuracy at the end. Such tasks are learned all at once: with few seeds the share is the result."
    )
    return Section("Tasks", [text], [Table(["arm", *probes], rows)])


def _at_equal(study: StudyText, metrics: pd.DataFrame, accounting: pd.DataFrame) -> Section | None:
    """Who is ahead depends on what is held equal: tokens, FLOPs or seconds."""
    logged = set(metrics["metric"])
    if not {"val/loss", "perf/tokens_per_s"} <= logged:
        return None
    table = loss_at_equal(metrics, accounting)
    means, sds = table.groupby("arm").mean(numeric_only=True), table.groupby("arm").std(numeric_only=True)
    columns = ("per_token", "per_flop", "per_second")
    rows = [
        [arm, *(spread(float(means[column][arm]), float(sds[column][arm])) for column in columns)]
        for arm in study.arms
        if arm in means.index
    ]
    text = (
        f"Validation loss (mean ± standard deviation) at the largest budget that every trial reached: "
        f"{table.attrs['tokens']:,.0f} tokens, {table.attrs['flops']:.3g} training FLOPs, "
        f"{table.attrs['seconds']:.3g} seconds. Seconds are those of a machine that ran several trials at once: where "
        "other work ran beside some arms and not others, they tell when an arm ran, not what it costs."
    )
    return Section("Per token, per FLOP and per second", [text], [Table(["arm", "tokens", "FLOPs", "seconds"], rows)])


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [[number(value) for value in row] for row in table.itertuples(index=False)]


def _arm_table(study: StudyText, results: pd.DataFrame, floor: Mapping[str, float]) -> Table:
    table = arm_statistics(study, results)
    judged = [metric for metric in study.metrics if f"{metric} mean" in table]
    rows = [
        [row["arm"], str(row["n"]), *(spread(row[f"{m} mean"], row[f"{m} sd"]) for m in judged)]
        for row in table.to_dict("records")
    ]
    if any(metric in floor for metric in judged):
        rows.append(["random router", "", *(number(floor.get(metric)) for metric in judged)])
    if any(chance(metric) is not None for metric in judged):
        rows.append(["chance", "", *(number(chance(metric)) for metric in judged)])
    return Table(["arm", "n", *(quantity(metric).short for metric in judged)], rows)


def _effect_table(effects: Sequence[Effect]) -> Table:
    header = ["metric", "arm", "difference [95% t]", "p (Holm)", "verdict", "note"]
    rows = [
        [
            quantity(effect.metric).short,
            effect.arm,
            difference_text(effect.mean, effect.low, effect.high),
            two_digits(effect.p_holm),
            effect.word,
            effect.note,
        ]
        for effect in effects
    ]
    return Table(header, rows)


def _detectable(study: StudyText, effects: Sequence[Effect]) -> tuple[list[str], list[Table]]:
    rows = []
    for metric in dict.fromkeys(effect.metric for effect in effects):
        found = [effect.detectable for effect in effects if effect.metric == metric]
        rows.append([quantity(metric).short, number(min(found)), number(max(found)), number(study.margin.get(metric))])
    family = max(len(study.arms) - 1, 1)
    in_sd = detectable_in_sd(len(study.seeds), ALPHA / family)
    text = (
        f"With {len(study.seeds)} seeds and {family} arms compared, a true difference is found in four of five such "
        f"studies when it is {in_sd:.2g} standard deviations of the paired differences; smaller ones would often "
        "have been missed. By the spread seen here, from the quietest arm to the noisiest:"
    )
    return [text], [Table(["metric", "smallest detectable, from", "to", "margin stated"], rows)]


def _equality(study: StudyText, accounting: pd.DataFrame) -> Table:
    """What the study holds equal, and how equal every budget came out over the arms that are compared."""
    rows, budgets = [], accounting.set_index("arm")
    for column in BUDGETS:
        exempt = [arm for arm in study.arms if column in study.differs.get(arm, ())]
        found = budgets[column].drop(exempt) if column in study.equal else budgets[column]
        families = [found[found.index.isin(family)] for family in study.families().values()]
        apart = max(1 - mine.min() / mine.max() for mine in families if len(mine))
        held = f"yes, but in {', '.join(exempt)}" if exempt else "yes"
        rows.append(
            [
                column,
                held if column in study.equal else "",
                number(found.min()),
                number(found.max()),
                "equal" if apart == 0 else f"{apart:.2%} apart",
            ]
        )
    return Table(["budget", "held equal", "lowest arm", "highest arm", "arms of one comparison"], rows)
