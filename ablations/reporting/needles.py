"""The section of a report on needles in a haystack."""

import math

import pandas as pd

from ablations.reporting.findings import Findings
from dsv2.data.needles import WORDINGS
from dsv2.metrics import chance
from dsv2.report.page import Section, Table
from dsv2.statistics.shares import found_by_length

WORDED = "Over all lengths, by how the sentence and its question are worded: " + "; ".join(
    f"{number}: {sentence} {question}" for number, (sentence, question) in enumerate(WORDINGS, 1)
)


def needles(findings: Findings) -> Section | None:
    """Tabulate the share of hidden sentences that were found, by length, and by wording over all lengths."""
    if (table := findings.shown(findings.needles)).empty:
        return None
    arms, shares = findings.study.arms, found_by_length(table)
    lengths = sorted(set(shares["length"]))
    by_cell = shares.set_index(["arm", "length"])
    rows = [
        [arm, *(_share(by_cell.loc[(arm, length)]) if (arm, length) in by_cell.index else "" for length in lengths)]
        for arm in arms
    ]
    by_wording = table.groupby(["arm", "wording"])["correct"].mean().unstack("wording")
    of_wordings = [[arm, *(f"{share:.2f}" for share in by_wording.loc[arm])] for arm in arms if arm in by_wording.index]
    level = chance("bench/needle")
    asked = table.groupby(["arm", "seed", "length", "depth"]).size().max()
    text = (
        f"A sentence is hidden in held-out text and asked for at the end: {table['depth'].nunique()} depths, {asked} "
        f"questions at each depth and length. Share of answers found, with its 95% t interval over seeds; chance is "
        f"{level:.3f}. Length is the number of tokens that the model reads."
    )
    return Section(
        "Exploratory: needle in a haystack",
        [text],
        [
            Table(["arm", *(f"{length:,}" for length in lengths)], rows),
            Table(
                ["arm", *(f"wording {wording + 1}" for wording in sorted(set(table["wording"])))], of_wordings, WORDED
            ),
        ],
    )


def _share(row: "pd.Series[float]") -> str:
    """Format a share of answers and its interval, which it lacks if all seeds have the same."""
    within = "" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['mean']:.2f}{within}"
