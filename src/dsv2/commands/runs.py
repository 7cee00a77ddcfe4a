"""`python -m dsv2 ls [STUDY]`: the runs of the store."""

import json
from collections.abc import Sequence

from dsv2.metrics import quantity
from dsv2.report.terminal import say
from dsv2.storage.runs import StoredRun, list_runs

LOSS = "val/loss"
COLUMNS = ("name", "fingerprint", "status", quantity(LOSS).label, "tokens", "seconds", "ended")


def print_runs(study: str | None = None, *, as_json: bool = False) -> None:
    """Print the runs of the store, or of a study (see `list_runs`); how to begin if there are none."""
    found = list_runs(study)
    if as_json:
        for run in found:
            say(json.dumps(run._asdict() | {"folder": str(run.folder)}))
    elif found:
        say(aligned(COLUMNS, [_row(run) for run in found]))
        say(_counted(found))
    else:
        say("no runs yet: `python -m ablations.run sweep=NAME` runs a study, `python -m dsv2.train` a single run")


def _row(run: StoredRun) -> list[str]:
    loss = run.metrics.get(LOSS)
    return [
        run.name,
        run.fingerprint,
        run.status,
        "" if loss is None else f"{loss:.4f}",
        "" if run.tokens is None else f"{run.tokens:,}",
        "" if run.seconds is None else f"{run.seconds:,.0f}",
        run.ended[:16].replace("T", " "),
    ]


def _counted(found: Sequence[StoredRun]) -> str:
    """Say how many runs there are of each status."""
    counts = {status: sum(run.status == status for run in found) for status in dict.fromkeys(r.status for r in found)}
    return f"{len(found)} runs: {', '.join(f'{number} {status}' for status, number in counts.items())}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text; columns of numbers are aligned to the right.

    Tables of rich take a second for a thousand rows.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [all(cell[:1].isdigit() for row in rows if (cell := row[index])) for index in range(len(header))]
    right[1] = False  # digits of a fingerprint

    def line(cells: Sequence[str]) -> str:
        parts = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if end else cell.ljust(width) for cell, width, end in parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
