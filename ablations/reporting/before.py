"""What a study will take, as a table in a terminal."""

import shutil
from typing import TYPE_CHECKING

from ablations.reporting.amounts import duration, large
from ablations.trials.outlook import HERE, Outlook
from dsv2.distributed.outlook import Need, Span
from dsv2.report.terminal import add_row, open_table
from dsv2.storage.rundir import runs_root

if TYPE_CHECKING:
    from rich.console import Console


def print_outlook(outlook: Outlook, price: float | None, console: "Console") -> None:
    """Print what the longest trial and all trials that are left take; `price` is that of a device per hour."""
    at_once = min(outlook.workers, max(outlook.trials, 1))
    where = "on this machine" if outlook.hardware == HERE else f"on {outlook.hardware}"
    left = f"{outlook.trials} trials left" + (f", {at_once} at a time" if at_once > 1 else "")
    table = open_table(("before you start, " + where, "longest trial", left))
    rate, trial, total = outlook.speed.rate, outlook.trial, outlook.left
    add_row(table, ["time", times(trial.seconds(rate)), times(outlook.study_seconds)])
    add_row(table, ["tokens", large(trial.tokens), large(total.tokens)])
    add_row(table, ["training FLOPs", f"{trial.flops:.2e}", f"{total.flops:.2e}"])
    add_row(table, ["peak memory", size(trial.memory), size(total.memory * at_once)])
    add_row(table, ["disk", size(trial.disk), size(total.disk)])
    unit = "worker hours" if outlook.hardware == HERE else f"{outlook.hardware} hours"
    add_row(table, [unit, *(_per_hour(need, rate, 1) for need in (trial, total))])
    if price is not None:
        add_row(table, [f"price at {price:g} per hour", *(_per_hour(need, rate, price) for need in (trial, total))])
    console.print(table)
    for line in notes(outlook):
        console.print(line, soft_wrap=True)


def notes(outlook: Outlook) -> list[str]:
    """Say what the times rest on, and what would not fit."""
    low, likely, high = (value / 1e9 for value in outlook.speed.rate)
    lines = [f"At {likely:,.3g} GFLOP/s ({low:,.3g} to {high:,.3g}): {outlook.speed.source}."]
    if outlook.devices > 1:
        lines.append(
            f"Weights, gradients, moments and the activations of one sequence need {outlook.devices:,} such devices; "
            "hours are of all of them together, times of one."
        )
    root = next(folder for folder in (runs_root().absolute(), *runs_root().absolute().parents) if folder.is_dir())
    if outlook.hardware == HERE and (free := shutil.disk_usage(root).free) < outlook.left.disk:
        lines.append(f"Not enough disk: {size(free)} are free in {root}.")
    return lines


def times(seconds: Span) -> str:
    """Format a likely time with its range."""
    return f"{duration(seconds.likely)} ({duration(seconds.low)} to {duration(seconds.high)})"


def size(count: float) -> str:
    """Format bytes with two or three digits, as in 15 MB or 1.9 TB."""
    for unit, least in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            value = count / least
            return f"{value:.2g} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{count:.0f} B"


def _per_hour(need: Need, rate: Span, each: float) -> str:
    """Format the hours that something takes, times what each costs."""
    low, likely, high = need.seconds(rate).times(each / 3600)
    return f"{_few(likely)} ({_few(low)} to {_few(high)})"


def _few(value: float) -> str:
    return f"{value:.2g}" if value < 100 else large(value) if value >= 1e4 else f"{value:,.0f}"
