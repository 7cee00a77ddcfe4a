"""The part of a report on loss over positions, for studies with benchmarks=positions."""

import pandas as pd

from ablations.reporting.findings import Findings
from ablations.reporting.words import spread
from dsv2.evaluation.positions import MULTIPLES
from dsv2.metrics import losses_at
from dsv2.report.page import Section, Table
from dsv2.statistics.paired import t_interval
from dsv2.statistics.verdicts import difference_text


def trained_length(results: pd.DataFrame) -> int:
    """Return the trained length of which the last position is the largest multiple; 0 if no losses are stored."""
    return max(losses_at(results.columns).values(), default=0) // MULTIPLES[-1]


def by_position(findings: Findings) -> Section | None:
    """Tabulate the loss of every arm at multiples of the trained length, and how it differs from that at the length."""
    length = trained_length(findings.finished)
    if not length:
        return None
    rows = []
    for arm in findings.study.arms:
        trials = findings.finished[findings.finished["arm"] == arm]
        at = {multiple: trials[f"bench/loss_{multiple}x"] for multiple in MULTIPLES}
        cells = [spread(losses.mean(), losses.std(ddof=1)) for losses in at.values()]
        rows.append([arm, *cells, *(_rise(at[multiple] - at[1]) for multiple in MULTIPLES[1:])])
    text = (
        f"Loss in nats per token up to 1, 2, 4 and 8 times the trained length of {length} tokens, each from half of it "
        "on (mean ± standard deviation), and what is added from one to the others (mean, with a 95% interval over "
        "seeds). The scored tokens are the same at all positions, so that only the position and the text before it "
        "differ."
    )
    header = ["arm", *(f"{multiple}x" for multiple in MULTIPLES), *(f"{multiple}x - 1x" for multiple in MULTIPLES[1:])]
    return Section("Loss by position", [text], [Table(header, rows)])


def _rise(differences: pd.Series) -> str:
    """Format the mean of differences, one per seed, with its interval."""
    values = differences.dropna().to_numpy(float)
    return difference_text(float(values.mean()), *t_interval(values)) if len(values) else ""
