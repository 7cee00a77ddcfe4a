"""Whether verdicts keep their promises: errors on equal arms, coverage of intervals, power at the detectable effect.

    python -m benchmarks.calibration [--studies 1000] [--aa SCALE]

Simulated studies go through `dsv2.statistics.verdicts.judge`. Every rate has a 95% Clopper-Pearson interval; a promise
is kept when the interval does not lie wholly on the wrong side. About one kept promise in forty looks broken by chance.
`--aa` asks the same of real trials: those of the study `aa`, whose arms differ in their seed alone. Writes
`benchmarks/results/calibration.json`; exits 1 where normal noise breaks more promises than chance explains.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from dsv2.statistics.calibration import (
    NOISE,
    Rate,
    TrialsRate,
    coverage,
    false_equivalence,
    false_positives,
    from_trials,
    power,
)

SIZES = [(seeds, arms) for seeds in range(3, 9) for arms in (2, 4, 6)]
OTHER_SIZES = [(3, 2), (5, 6), (8, 4)]  # where the noise is not normal
PSEUDO = [(3, 2), (5, 2), (4, 6)]  # (seeds, arms) of pseudo-studies from real trials
DRAWS = 1000
BY_CHANCE = 0.025  # a kept promise whose interval lies on the wrong side


def measure(studies: int) -> list[Rate]:
    """Simulate all sizes and kinds of noise, `studies` times each."""
    rates: list[Rate] = []
    for draw, (seeds, arms) in enumerate(track(SIZES, description="normal noise")):
        rates.append(false_positives("normal", seeds, arms, studies=studies, draw=draw))
        rates.append(false_equivalence("normal", seeds, arms, studies=studies, draw=draw))
        rates.append(power("normal", seeds, arms, studies=studies, draw=draw))
    for noise in track([noise for noise in NOISE if noise != "normal"], description="other noise"):
        for draw, (seeds, arms) in enumerate(OTHER_SIZES):
            rates.append(false_positives(noise, seeds, arms, studies=studies, draw=draw))
            rates.append(false_equivalence(noise, seeds, arms, studies=studies, draw=draw))
            rates.append(power(noise, seeds, arms, studies=studies, draw=draw))
    for noise in track(list(NOISE), description="intervals"):
        for seeds in (3, 5, 8):
            rates.append(coverage(noise, seeds, studies=studies))
    return rates


def broken(rate: Rate) -> bool:
    """Return whether the interval lies wholly on the wrong side: above 5% errors, below 95% coverage or 80% power."""
    return rate.low > rate.promised if rate.what.startswith("false") else rate.high < rate.promised


def show(console: Console, title: str, rates: Sequence[Rate]) -> None:
    """Print a table of rates and whether each keeps its promise."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "noise", "seeds", "arms", "rate", "95% interval", "promised", ""):
        table.add_column(column, justify="left" if column in ("what", "noise", "") else "right")
    for rate in rates:
        cells = f"{rate.rate:.1%}", f"{rate.low:.1%} - {rate.high:.1%}", f"{rate.promised:.0%}"
        table.add_row(
            rate.what, rate.noise, str(rate.seeds), str(rate.arms), *cells, "broken" if broken(rate) else "kept"
        )
    console.print(table)


def real(scale: str, console: Console) -> list[TrialsRate]:
    """Draw pseudo-studies from the finished trials of study `aa`, in every metric that varies."""
    from ablations import results

    done = pd.DataFrame(results("aa", scale=scale))
    done = done[done["status"] == "finished"]
    metrics = [m for m in done if str(m).startswith(("val/", "routing/")) and done[m].notna().all() and np.ptp(done[m])]
    rates, table = [], Table(title=f"Identical trials told apart (study aa, {scale})", title_justify="left")
    for column in ("metric", "seeds", "arms", "trials", "rate", "95% interval", "independent studies"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in track(metrics, description="real trials"):
        for seeds, arms in PSEUDO:
            if len(done) < 2 * seeds * arms:
                console.print(f"{metric}: {len(done)} trials are too few for {arms} arms of {seeds} seeds")
                continue
            rate = from_trials(done, str(metric), seeds, arms, DRAWS)
            rates.append(rate)
            size = str(rate.seeds), str(rate.arms), str(rate.trials)
            interval = f"{rate.low:.1%} - {rate.high:.1%}"
            table.add_row(rate.metric, *size, f"{rate.rate:.1%}", interval, f"{rate.effective:.0f}")
    console.print(table)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per rate")
    parser.add_argument("--aa", metavar="SCALE", help="also the finished trials of study aa at this scale")
    arguments = parser.parse_args()
    console = Console()
    rates = measure(arguments.studies)
    normal = [rate for rate in rates if rate.noise == "normal"]
    show(console, "Normal noise", normal)
    other = [rate for rate in rates if rate.noise != "normal"]
    show(console, "Other noise: no promise is made, this is what happens", other)
    count = sum(broken(rate) for rate in normal)
    most = int(stats.binom.ppf(0.999, len(normal), BY_CHANCE))
    console.print(f"Normal noise: {count} of {len(normal)} intervals on the wrong side; chance explains up to {most}.")
    trials = real(arguments.aa, console) if arguments.aa else []
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    result = {
        "studies": arguments.studies,
        "versions": versions,
        "noise": NOISE,
        "rates": [rate._asdict() for rate in rates],
        "broken": {"normal": count, "of": len(normal), "by_chance_up_to": most},
        "trials": [rate._asdict() for rate in trials],
    }
    path = Path(__file__).parent / "results" / "calibration.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return int(count > most)


if __name__ == "__main__":
    sys.exit(main())
