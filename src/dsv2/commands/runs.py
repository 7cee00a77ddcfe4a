"""`python -m dsv2 ls`, `show`, `compare` and `rm`: the runs of the store."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2.metrics import quantity
from dsv2.report.terminal import add_row, open_console, open_table, say
from dsv2.storage.rundir import CHECKPOINTS, CONFIG, LOCK, read_result
from dsv2.storage.runs import StoredRun, find_run, list_runs, list_trials

if TYPE_CHECKING:
    import pandas as pd

LOSS = "val/loss"
EXPLORATORY = "Intervals are those of paired differences between the two arms, each for itself: exploratory."
SINGLE = "One difference of two runs is no evidence: two arms of a study with several seeds have intervals."
BARS = "▁▂▃▄▅▆▇█"  # of a load from 0 to the largest shown
COLUMNS = ("name", "fingerprint", "status", quantity(LOSS).label, "tokens", "seconds", "ended")


def print_runs(study: str | None = None, *, as_json: bool = False, html: bool = False) -> None:
    """Print the runs of the store, or of a study (see `list_runs`); how to begin if there are none.

    With `html`, writes the page of all studies instead, and prints its path.
    """
    if html:
        from dsv2.report.index import write_index

        say(str(write_index()))
        return
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
    return f"{_runs(len(found))}: {', '.join(f'{number} {status}' for status, number in counts.items())}"


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


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


# ---- one run, two runs -----------------------------------------------------------------------------------------------


def show_run(name: str, *, config: bool = False) -> None:
    """Print what is stored of a run: how it ended, its metrics and the load of its experts; or its config alone."""
    from dsv2.report.runs import last_load, trial_of

    folder = find_run(name)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a run directory, it has no {CONFIG}")
    if config:
        say((folder / CONFIG).read_text(), end="")
        return
    result, trial = read_result(folder), trial_of(folder, list_trials())
    console = open_console()
    facts = {"name": trial.name if trial else folder.name, "folder": str(folder)} | _facts(folder, result)
    width = max(map(len, facts))
    for key, value in facts.items():
        console.print(f"{key:<{width}}  {value}", soft_wrap=True)
    if result.get("status") != "finished":
        return
    table = open_table(["metric", "value"])
    for metric, value in result["metrics"].items():
        if _is_named(metric):
            add_row(table, [quantity(metric).label, number(value)])
    console.print(table)
    _print_load(last_load(folder), {"load": "load of each expert, by layer"})


def _facts(folder: Path, result: dict[str, Any]) -> dict[str, str]:
    """Say how a run ended and what computed it."""
    facts = {"status": result.get("status", "unfinished")}
    if "error" in result:
        facts["error"] = str(result["error"])
    if result.get("ended"):
        facts["ended"] = result["ended"]
    if "tokens" in result:
        facts["trained"] = f"{result['tokens']:,} tokens, {result['steps']:,} steps, {result['seconds']:,.0f} s"
    if made := result.get("provenance"):
        git = made.get("git") or {}
        commit = f", commit {git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git else ""
        versions = made.get("versions", {})
        facts["computed by"] = (
            f"{made.get('kernels', 'torch')} kernels, {made.get('device')}, {made.get('threads')} threads"
        )
        facts["versions"] = ", ".join(f"{package} {version}" for package, version in versions.items()) + commit
        if origin := made.get("origin"):
            facts["started from"] = f"{origin['run']}, step {origin['step']}"
    kept = sorted(path.name for path in (folder / CHECKPOINTS).glob("*.ckpt"))
    if kept:
        size = sum(path.stat().st_size for path in (folder / CHECKPOINTS).iterdir())
        facts["checkpoints"] = f"{', '.join(kept)} ({size / 1e6:,.1f} MB)"
    return facts


def compare_runs(first: str, second: str) -> None:
    """Print how the configs of two runs differ, then metrics with intervals and the load of experts, side by side."""
    from dsv2.report.runs import compare

    sides = {"first": first, "second": second}
    differences, metrics, load = compare(first, second)
    console = open_console()
    for side, name in sides.items():
        console.print(f"{side:<6}  {name}", soft_wrap=True)
    table = open_table(["setting", *sides], text=[*sides])
    for _, key, *values in differences.itertuples():
        add_row(table, [key, *("" if value is None else str(value) for value in values)])
    console.print(table if len(differences) else "\nNo setting differs.")
    for name in sides.values():
        if (status := read_result(find_run(name)).get("status", "unfinished")) != "finished":
            console.print(f"{name} is {status}: there are no metrics to compare")
            return
    paired = bool(metrics["low"].notna().any())
    table = open_table(["metric", *sides, "second - first", *(["over seeds [95%]", "seeds"] if paired else [])])
    for row in metrics[metrics["metric"].map(_is_named)].to_dict("records"):
        cells = [quantity(row["metric"]).label, number(row["first"]), number(row["second"]), _signed(row["difference"])]
        known = not math.isnan(row["low"])
        between = f"{_signed(row['mean'])} [{_signed(row['low'])}, {_signed(row['high'])}]" if known else ""
        add_row(table, [*cells, *([between, str(row["n"])] if paired else [])])
    console.print(table)
    console.print(EXPLORATORY if paired else SINGLE)
    _print_load(load, {side: f"load of experts, {side}" for side in sides})


def _print_load(load: "pd.DataFrame", sides: dict[str, str]) -> None:
    """Print the load of experts (layer, expert, and a column per side), a bar for each expert."""
    if not len(load):
        return
    most = load[list(sides)].max().max()
    columns = [text for side, title in sides.items() for text in (title, "most loaded")]
    table = open_table(["layer", *columns], text=list(sides.values()))
    for layer, rows in load.groupby("layer"):
        cells = []
        for side in sides:
            loads = rows[side].dropna()
            cells += ["".join(BARS[round(value / most * (len(BARS) - 1))] for value in loads)]
            cells += [f"{loads.max():.2f}x" if len(loads) else ""]
        add_row(table, [str(layer), *cells])
    open_console().print(table)


def _is_named(metric: str) -> bool:
    """Whether a metric has a name of its own: others, as `train/lr`, say nothing of the model."""
    return quantity(metric).name != metric


def number(value: float) -> str:
    """Format a metric with four decimals, or with four digits where these say more."""
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:.3e}" if abs(value) < 1 else f"{value:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 100 else f"{value:+,.0f}"


# ---- fewer runs ------------------------------------------------------------------------------------------------------


def remove_runs(names: Sequence[str], *, force: bool = False, yes: bool = False) -> None:
    """Remove runs from the store after asking, unless `yes`.

    Raises ValueError, before anything is removed, for a run that is not in the store, one that is trained now and,
    unless `force`, one that a report names or from whose weights another run of the store started.
    """
    from dsv2.storage.locks import Busy, is_held, meet
    from dsv2.storage.removal import named_by, remove, runs_at, size

    chosen = runs_at([find_run(name) for name in names])
    others = [run for run in list_runs() if run.folder not in {one.folder for one in chosen}]
    for run in chosen:
        if is_held(run.folder / LOCK):
            raise ValueError(f"{run.name}: {meet(run.folder / LOCK, 'this run')}; nothing was removed")
        if not force and (named := named_by(run, others)):
            raise ValueError(f"{run.name}: named by {'; '.join(named)}. Nothing was removed; --force removes it anyway")
    sizes = [size(run.folder) for run in chosen]
    rows = [
        [run.name, run.fingerprint, run.status, f"{size / 1e6:,.1f}"] for run, size in zip(chosen, sizes, strict=True)
    ]
    say(aligned(("name", "fingerprint", "status", "MB"), rows))
    if not yes and not _agreed(f"Remove {_runs(len(chosen))}, {sum(sizes) / 1e6:,.1f} MB? [y/N] "):
        say("nothing was removed")
        return
    for run in chosen:
        try:
            remove(run)
        except Busy as error:  # it began meanwhile
            raise ValueError(str(error)) from None
        say(f"removed {run.folder}")


def _agreed(question: str) -> bool:
    """Ask in the terminal. Raises ValueError without one."""
    if not sys.stdin.isatty():
        raise ValueError("--yes: required where standard input is no terminal to ask in; nothing was removed")
    return input(question).strip().lower() in ("y", "yes")
