"""Trials per hour and the time to a verdict of `balance_losses` at smoke, against the code of an earlier commit.

    python -m benchmarks.study [--seeds 2] [--rounds 3] [--workers 2] [--base 55944a2]

The earlier code is checked out in a git worktree of its own and run by the same Python. In every round both sides run
the study as a command in an empty store, in turns, the one that begins alternating: planning, data, training and
report. This code runs a second time with plain torch. What the user's caches keep between studies is prepared before
anything is timed; the earlier code keeps nothing there. Before a ratio is printed, the validation losses of all arms
must agree within the spread over seeds. Writes `benchmarks/results/study.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
OURS, PLAIN, BASE = "this code", "this code, plain torch", "earlier code"
OVERRIDES: dict[str, list[str]] = {OURS: ["trainer.kernels=cpu"], PLAIN: ["trainer.kernels=torch"], BASE: []}
SPREAD = 4  # standard errors of the mean over seeds within which losses agree


def run(side: str, code: Path, seeds: int, workers: int, cache: Path) -> dict[str, Any]:
    """Run the study in an empty store; return the seconds to its verdicts, to each trial's end, and losses by arm."""
    words = ["sweep=balance_losses", "scale=smoke", f"seeds=[{','.join(map(str, range(seeds)))}]", f"workers={workers}"]
    with tempfile.TemporaryDirectory() as store:
        folders = {"PYTHONPATH": f"{code / 'src'}:{code}", "DSV2_RUNS": store, "DSV2_CACHE": str(cache)}
        command = [sys.executable, "-m", "ablations.run", *words, *OVERRIDES[side]]
        started, since = time.perf_counter(), time.time()
        done = subprocess.run(command, env=os.environ | folders, cwd=store, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"{side}: {' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
        results = list(Path(store).glob("balance_losses/smoke/trials/*/result.json"))
        losses: dict[str, list[float]] = {}
        for path in results:
            result = json.loads(path.read_text())
            losses.setdefault(result["arm"], []).append(result["metrics"]["val/loss"])
        ends = sorted(path.stat().st_mtime - since for path in results)
    return {"seconds": seconds, "first": ends[0], "last": ends[-1], "trials": len(ends), "losses": losses}


def require_equal(measured: dict[str, list[dict[str, Any]]]) -> None:
    """Exit unless the sides' mean losses agree, arm by arm."""
    first = {side: rounds[0]["losses"] for side, rounds in measured.items()}
    for arm, losses in first[BASE].items():
        error = statistics.stdev(losses) / len(losses) ** 0.5
        for side in (OURS, PLAIN):
            off = statistics.fmean(first[side][arm]) - statistics.fmean(losses)
            if abs(off) > SPREAD * error:
                sys.exit(f"{arm}: the mean loss of {side} is off by {off:+.4f}, standard error {error:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--base", default="55944a2", help="commit of the earlier code")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base, cache = Path(scratch, "base"), Path(scratch, "cache")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(base), arguments.base], check=True, capture_output=True)
        try:
            code = {OURS: ROOT, PLAIN: ROOT, BASE: base}
            measured: dict[str, list[dict[str, Any]]] = {side: [] for side in code}
            run(OURS, ROOT, 1, arguments.workers, cache)  # compiles, and prepares the data
            for number in track(range(arguments.rounds), "rounds"):
                for side in list(code)[:: 1 if number % 2 else -1]:
                    measured[side].append(run(side, code[side], arguments.seeds, arguments.workers, cache))
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)
    require_equal(measured)
    title = f"balance_losses at smoke, {arguments.seeds} seeds, {arguments.workers} workers, {arguments.rounds} rounds"
    table = Table(title=title)
    for column in ("side", "seconds to the verdicts", "trials/hour", "ratio", "least and greatest"):
        table.add_column(column, justify="left" if column == "side" else "right")
    rows = []
    for side, rounds in measured.items():
        seconds = [one["seconds"] for one in rounds]
        ratios = [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(measured[BASE], rounds, strict=True)]
        row = {
            "side": side,
            "seconds": [round(one, 1) for one in seconds],
            "seconds_to_first_trial": [round(one["first"], 1) for one in rounds],
            "trials_per_hour": round(3600 * rounds[0]["trials"] / statistics.median(one["last"] for one in rounds)),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
        rows.append(row)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        table.add_row(
            side, f"{statistics.median(seconds):.1f}", str(row["trials_per_hour"]), f"{row['ratio']:.2f}x", spread
        )
    Console().print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    kept = vars(arguments) | {"machine": machine, "torch": torch.__version__, "rows": rows}
    (ROOT / "benchmarks/results/study.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
