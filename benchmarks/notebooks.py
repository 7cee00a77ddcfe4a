"""`python -m benchmarks.notebooks [NAME ...]`: runs notebooks at smoke, each with a store of its own that is empty.

Prints the seconds of each against 180 and writes benchmarks/results/notebooks.json; those not named keep what is stored
of them. The exit status is 1 if a notebook fails or takes longer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RESULT = Path(__file__).parent / "results" / "notebooks.json"
MOST_SECONDS = 180.0


def timed(path: Path) -> tuple[float, bool]:
    """Seconds from the start of its kernel to its last cell, and whether it got there; what it said is shown if not."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "jupyter", "execute", str(path), "--output", f"{store}/{path.name}"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DSV2_RUNS": f"{store}/runs"})
        seconds = time.perf_counter() - start
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
    return seconds, done.returncode == 0


def main(names: list[str]) -> int:
    paths = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    if unknown := [name for name in names if name not in paths]:
        print(f"error: no notebook {', '.join(unknown)}; there are {', '.join(paths)}", file=sys.stderr)
        return 2
    rows = json.loads(RESULT.read_text())["notebooks"] if RESULT.is_file() else {}
    for name in names or paths:
        seconds, finished = timed(paths[name])
        rows[name] = {"seconds": round(seconds), "in_time": finished and seconds < MOST_SECONDS}
        marks = "" if rows[name]["in_time"] else "  FAILED" if not finished else "  too slow"
        print(f"{name:<28} {seconds:>6.0f} s{marks}", flush=True)
    RESULT.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "notebooks": rows}, indent=1) + "\n")
    return 0 if all(row["in_time"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
