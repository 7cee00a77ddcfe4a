"""What the studies of alignment show, as text."""

from collections.abc import Callable, Sequence

from results_stored import Stored

from dsv2.metrics import quantity

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
SHOWN = {"bench/pass_at_1": ".3f", "bench/following": ".3f", "bench/pass_at_8": ".3f"}  # metric -> format


def staleness(table: Table, scale: str = "smoke") -> str:
    """What every arm of `grpo_online_offline` gets right, and the verdicts."""
    stored = Stored("grpo_online_offline", scale)
    rows = [[f"`{arm}`", *(stored.spread(arm, *shown) for shown in SHOWN.items())] for arm in stored.table.index]
    text = (
        f"Mean ± standard deviation over {stored.seeds} seeds at {scale}. Verdicts, minus `offline`, with intervals "
        f"that hold together: {stored.verdicts()}."
    )
    return f"{table(['arm', *(quantity(metric).label for metric in SHOWN)], rows)}\n\n{text}"
