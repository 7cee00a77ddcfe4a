"""What the studies of longer contexts show, as text, from the committed results."""

from collections.abc import Callable, Sequence

from results_stored import Stored

from dsv2.evaluation import needle
from dsv2.evaluation.positions import MULTIPLES
from dsv2.metrics import quantity
from dsv2.statistics.paired import t_interval
from dsv2.statistics.verdicts import difference_text

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def extension(table: Table) -> str:
    """The loss of every arm at multiples of the trained length, and how it rises from that length to four times it."""
    stored = Stored.largest("context_extension")
    rows = []
    for arm in stored.table.index:
        losses = [stored.spread(arm, f"bench/loss_{multiple}x", ".3f") for multiple in MULTIPLES]
        rows.append([f"`{arm}`", *losses, _rise(stored, arm)])
    header = ["arm", *(f"{multiple}x" for multiple in MULTIPLES), "4x - 1x"]
    text = (
        f"Loss (nats/token) up to 1, 2, 4 and 8 times the trained length at {stored.scale}, mean ± standard deviation "
        f"over {stored.seeds} seeds, and what is added from one to four times, with its 95% interval. Verdicts, minus "
        f"`none` or `none_tuned`, with intervals that hold together: {stored.verdicts()}."
    )
    return f"{table(header, rows)}\n\n{text}"


def needles(table: Table) -> str:
    """The share of hidden sentences that every arm finds, by length, and the mean log-probability of the answers."""
    stored = Stored.largest("needle")
    shares, nats = [f"bench/needle_{multiple}x" for multiple in needle.MULTIPLES], "bench/needle_nats"
    rows = [
        [f"`{arm}`", *(stored.spread(arm, metric, ".2f") for metric in shares), stored.spread(arm, nats, ".1f")]
        for arm in stored.table.index
    ]
    header = ["arm", *(f"{multiple}x" for multiple in needle.MULTIPLES), quantity(nats).label]
    text = (
        f"Share of hidden sentences found at 1 to 16 times the trained length at {stored.scale}, mean ± standard "
        f"deviation over {stored.seeds} seeds, and the log-probability of the answers over all lengths. Verdicts, "
        f"minus `none` or `none_tuned`, with intervals that hold together: {stored.verdicts()}."
    )
    return f"{table(header, rows)}\n\n{text}"


def _rise(stored: Stored, arm: str) -> str:
    trials = stored.trials[stored.trials["arm"] == arm]
    rises = (trials["bench/loss_4x"] - trials["bench/loss_1x"]).dropna().to_numpy(float)
    return difference_text(float(rises.mean()), *t_interval(rises))
