"""The part of a report on learning rates: which one every arm has, and whether it is the best of its own."""

import pandas as pd

from ablations.reporting.findings import Findings
from ablations.reporting.words import number
from dsv2.metrics import quantity
from dsv2.report.page import Section, Table
from dsv2.study.rates import Curve


def curves(findings: Findings) -> dict[str, Curve]:
    """Return the curves that the report shows: those its arms' rates were taken from, else those of its own arms.

    The latter are of arms that differ in the learning rate alone; empty if trials of them are missing.
    """
    study, metric = findings.study, findings.study.metric
    if study.curves or findings.missing:
        return dict(study.curves)
    finished = findings.finished if metric in findings.finished else findings.finished.head(0).assign(**{metric: 0.0})
    values = {str(arm): tuple(rows[metric]) for arm, rows in finished.groupby("arm")}
    return {
        name: Curve(
            of=name,
            metric=metric,
            better="lower" if study.metrics[metric] == "lower" else "higher",
            rates=tuple(arms),
            values=tuple(values[arm] for arm in arms.values()),
        )
        for name, arms in study.families_of_rates.items()
        if all(arm in values for arm in arms.values())
    }


def curves_table(of: dict[str, Curve]) -> pd.DataFrame:
    """Return the columns arm, rate and value, a row per seed, for the figure."""
    return pd.DataFrame(
        [
            {"arm": name, "rate": rate, "value": value}
            for name, curve in of.items()
            for rate, values in zip(curve.rates, curve.values, strict=True)
            for value in values
        ]
    )


def learning_rates(findings: Findings) -> Section | None:
    """Say at which learning rates the arms were trained, and tabulate the metric over the rate where it is known."""
    study, shown = findings.study, curves(findings)
    if not study.rates:
        return None
    if study.curves:
        first = next(iter(study.curves.values()))
        by = f"{quantity(first.metric).name} ({len(first.values[0])} seeds)"
        text = f"Arms are trained at the rate that was best of their own in {study.lr_from} at this scale, by {by}."
        others = [arm for arm in study.arms if arm not in study.curves]
        text += f" Not so {', '.join(f'{arm} ({study.rates[arm]:g})' for arm in others)}." if others else ""
    elif shown:
        text = (
            "Each row is of arms that differ from one another in their learning rate alone. The rate with the best "
            "mean is what a study takes that names this one with `lr_from`; with few seeds, neighbours may be as good."
        )
    else:
        text = (
            f"{_rates(findings)}. No arm's own best rate was looked for, so that a difference between arms may be one "
            "in how well the rate suits them."
        )
    tables = [_table(shown)] if shown else []
    return Section("Learning rates", [text], tables)


def _rates(findings: Findings) -> str:
    rates = findings.study.rates
    if len(distinct := sorted(set(rates.values()))) == 1:
        return f"All arms have a learning rate of {distinct[0]:g}"
    return "Learning rates: " + "; ".join(
        f"{rate:g} of {', '.join(arm for arm in rates if rates[arm] == rate)}" for rate in distinct
    )


def _table(shown: dict[str, Curve]) -> Table:
    rates = sorted({rate for curve in shown.values() for rate in curve.rates})
    rows = []
    for name, curve in shown.items():
        means = dict(zip(curve.rates, curve.means, strict=True))
        edge = ", the last one tried: the best may lie beyond" if curve.at_edge else ""
        rows.append([name, *(number(means.get(rate)) for rate in rates), f"{curve.best:g}{edge}"])
    return Table(["arm", *(f"{rate:g}" for rate in rates), "best"], rows)
