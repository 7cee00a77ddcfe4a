"""Trials per hour and the time to a verdict of `balance_losses` at smoke, against the code of an earlier commit.

    python -m benchmarks.study [--seeds 2] [--rounds 3] [--workers 2] [--base 55944a2]

The earlier code is checked out in a git worktree of its own and run by the same Python. In every round both sides run
the study as a command in an empty store, in turns, the one that begins alternating: planning, data, training and
report. This code runs a second time with plain torch. What the user's caches keep between studies is prepared before
anything is timed; the earlier code keeps nothing there. Before a ratio is printed, the validation losses of all arms
must agree within the spread over seeds. The rate of a matmul in one process, and in as many as there are workers, says
what the cores share: on a machine whose two CPUs are one core, two trials that do nothing but matmuls gain nothing from
the second. Writes `benchmarks/results/study.json`.
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
EVENTS = {  # the seconds that a study needs until each, and a trial for its steps and validation
    "training": "train one",
    "planned": "the plan",
    "first": "the first trial",
    "last": "the last trial",
    "verdicts": "the verdicts",
    "seconds": "the report",
}
RATIOS = {"training": "training", "trials": "last", "verdicts": "verdicts"}  # of the earlier code's seconds to these
SPREAD = 4  # standard errors of the mean over seeds within which losses agree


def run(side: str, code: Path, seeds: int, workers: int, cache: Path) -> dict[str, Any]:
    """Run the study in an empty store; return seconds until trials began, until each ended, until the verdicts and the
    report, and losses by arm."""
    words = ["sweep=balance_losses", "scale=smoke", f"seeds=[{','.join(map(str, range(seeds)))}]", f"workers={workers}"]
    with tempfile.TemporaryDirectory() as store:
        folders = {"PYTHONPATH": f"{code / 'src'}:{code}", "DSV2_RUNS": store, "DSV2_CACHE": str(cache)}
        folders["PYTHONUNBUFFERED"] = "1"  # so that lines are timed when they are printed
        command = [sys.executable, "-m", "ablations.run", *words, *OVERRIDES[side]]
        started, since = time.perf_counter(), time.time()
        lines: list[tuple[float, str]] = []
        with subprocess.Popen(
            command, env=os.environ | folders, cwd=store, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            lines.extend((time.perf_counter() - started, line) for line in process.stdout)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{side}: {' '.join(command)} failed: {lines[-1:]}")
        planned = next(at for at, line in lines if "already finished" in line)
        verdicts = next(at for at, line in lines if line.startswith(("Against ", "report:")))
        results = list(Path(store).glob("balance_losses/smoke/trials/*/result.json"))
        losses: dict[str, list[float]] = {}
        training = []
        for path in results:
            result = json.loads(path.read_text())
            training.append(result["seconds"])
            losses.setdefault(result["arm"], []).append(result["metrics"]["val/loss"])
        ends = sorted(path.stat().st_mtime - since for path in results)
    times = {"planned": planned, "first": ends[0], "last": ends[-1], "verdicts": verdicts, "seconds": seconds}
    return times | {"training": statistics.median(training), "trials": len(ends), "losses": losses}


def matmul_rates(processes: int) -> list[float]:
    """Return the GFLOP/s of one thread's matmul, alone and in this many processes at once (the mean of them)."""
    rate = "import torch; from dsv2.training.machine import peak_flops; torch.set_num_threads(1);"
    rate += "print(max(peak_flops.__wrapped__(torch.device('cpu'), '32') for _ in range(20)))"

    def together(count: int) -> float:
        running = [subprocess.Popen([sys.executable, "-c", rate], stdout=subprocess.PIPE) for _ in range(count)]
        return statistics.fmean(float(process.communicate()[0]) for process in running) / 1e9

    return [round(together(count), 1) for count in (1, processes)]


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
    rates = matmul_rates(arguments.workers)
    title = f"balance_losses at smoke, {arguments.seeds} seeds, {arguments.workers} workers, {arguments.rounds} rounds"
    table = Table(title=title)
    for column in ("side", *(f"s to {event}" for event in EVENTS.values()), "trials/hour", *RATIOS):
        table.add_column(column, justify="left" if column == "side" else "right")
    rows = []
    for side, rounds in measured.items():
        seconds = {event: [round(one[event], 1) for one in rounds] for event in EVENTS}
        ratios = {
            name: [round(theirs[event] / mine[event], 2) for theirs, mine in zip(measured[BASE], rounds, strict=True)]
            for name, event in RATIOS.items()
        }
        hourly = round(3600 * rounds[0]["trials"] / statistics.median(seconds["last"]))
        rows.append({"side": side, "seconds": seconds, "trials_per_hour": hourly, "ratios": ratios})
        medians = [f"{statistics.median(values):.1f}" for values in seconds.values()]
        gains = [f"{statistics.median(gain):.2f}x ({min(gain):.2f}-{max(gain):.2f})" for gain in ratios.values()]
        table.add_row(side, *medians, str(hourly), *gains)
    console = Console(width=160)
    console.print(table)
    console.print(f"matmul, one thread: {rates[0]} GFLOP/s alone, {rates[1]} in {arguments.workers} processes at once")
    machine = {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    machine |= {"matmul_gflops_alone": rates[0], "matmul_gflops_together": rates[1]}
    kept = vars(arguments) | {"machine": machine, "torch": torch.__version__, "rows": rows}
    (ROOT / "benchmarks/results/study.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
