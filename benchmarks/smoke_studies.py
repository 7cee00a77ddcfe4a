"""`python -m benchmarks.smoke_studies [--plans] [STUDY ...]`: plans studies at every scale, runs them at smoke.

Prints a table and writes benchmarks/results/smoke_studies.json: seconds of each dry run against 5, minutes of each run
against 10. A study that is stored already is only judged again, so give DSV2_RUNS an empty folder for honest times.
Without names it takes every study; those not named keep what is stored of them, and with `--plans` only the dry runs
are timed again. The exit status is 1 if a study fails or takes longer.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ablations.reporting.ladder import SCALES
from ablations.wandb_sweeps import studies

RESULT = Path(__file__).parent / "results" / "smoke_studies.json"
PLAN_SECONDS, RUN_SECONDS = 5.0, 600.0
RAN = ("run_seconds", "finished")  # what `timed` gives of a run


def timed(*words: str) -> tuple[float, bool]:
    """Seconds of a command, and whether it ended well; what it printed is shown if not."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ablations.run", *words], capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return time.perf_counter() - start, done.returncode == 0


def main(words: list[str]) -> int:
    plans_only, names = "--plans" in words, [word for word in words if word != "--plans"]
    stored = json.loads(RESULT.read_text())["studies"] if RESULT.is_file() else []
    rows = {row["study"]: row for row in stored}
    known = rows if plans_only else studies()
    if unknown := [name for name in names if name not in known]:
        print(f"error: no study {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    print(f"{'study':<20} {'slowest plan':>14} {'run':>8}")
    for name in names or studies():
        plans = [timed(f"sweep={name}", f"scale={scale}", "dry_run=true") for scale in SCALES]
        ran = rows[name] if plans_only else dict(zip(RAN, timed(f"sweep={name}", "scale=smoke"), strict=True))
        rows[name] = {
            "study": name,
            "plan_seconds": {scale: round(plan, 1) for scale, (plan, _) in zip(SCALES, plans, strict=True)},
            "run_seconds": round(ran["run_seconds"]),
            "finished": ran["finished"] and all(ended for _, ended in plans),
        }
        slowest, seconds = max(plan for plan, _ in plans), rows[name]["run_seconds"]
        rows[name]["in_time"] = slowest < PLAN_SECONDS and seconds < RUN_SECONDS
        marks = "" if rows[name]["finished"] else "  FAILED"
        marks += "" if rows[name]["in_time"] else "  too slow"
        print(f"{name:<20} {slowest:>12.1f} s {seconds / 60:>6.1f} min{marks}", flush=True)
    ordered = [rows[name] for name in sorted(rows)]
    RESULT.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "studies": ordered}, indent=1) + "\n")
    return 0 if all(row["finished"] and row["in_time"] for row in ordered) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
