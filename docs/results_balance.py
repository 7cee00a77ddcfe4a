"""What balancing without a loss does, and what the report says of cost beside ours, as text."""

from collections.abc import Callable, Sequence

from results_stored import LOADS, LOSS, Stored

from dsv2.accounting.derived import derived
from dsv2.metrics import quantity

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
SHOWN = {LOSS: ".3f", LOADS[0]: ".2f", LOADS[1]: ".2f", LOADS[3]: ".1%"}  # metric -> format


def balancing(table: Table, scale: str = "smoke") -> str:
    """The loads and losses of every arm of the study of balancing, and its verdicts."""
    stored = Stored("balance_free", scale)
    rows = [[f"`{arm}`", *(stored.spread(arm, *shown) for shown in SHOWN.items())] for arm in stored.table.index]
    text = (
        f"Mean ± standard deviation over {stored.seeds} seeds at {scale}. Verdicts, minus `losses`, or for `v3` minus "
        f"`sigmoid`, with intervals that hold together: {stored.verdicts()}."
    )
    return f"{table(['arm', *(quantity(metric).label for metric in SHOWN)], rows)}\n\n{text}"


def costs(table: Table) -> str:
    """Figures of the report on training hours and generation, beside those of models of cost."""
    rows = [
        [row.what, row.name, f"{row.published:g}{row.unit}", f"{row.ours:.4g}{row.unit}", row.why] for row in derived()
    ]
    return table(["", "", "published", "ours", "what it rests on"], rows)
