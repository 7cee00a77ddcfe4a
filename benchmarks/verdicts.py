"""Whether verdicts keep their promises: at most 5% of studies say anything false, intervals hold, power is as stated.

    python -m benchmarks.verdicts [--studies 40000] [--aa SCALE]

Simulated studies are judged by the functions that judge reports, after a check on a sample that both give the same
words and limits. Every rate has a 95% Clopper-Pearson interval; a promise is broken when the interval lies wholly on
the wrong side. `--aa` asks the same of real trials: those of the study `aa` whose arms differ in their seeds alone.
Writes `benchmarks/results/verdicts.json` and the tables of `docs/calibration.md`; exits 1 for a broken promise.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from rich.progress import track
from scipy import stats

from dsv2.statistics.calibration import (
    MARGIN,
    NOISE,
    PAIRED_SD,
    Rate,
    TrialsRate,
    coverage,
    false_verdicts,
    from_trials,
    judged_alike,
    power,
)
from dsv2.statistics.paired import ALPHA, POWER
from dsv2.storage.files import write_json, write_text

SEEDS, CONTRASTS = (2, 3, 4, 5, 8, 16), (1, 3, 6)
PROMISED = [noise for noise in NOISE if noise != "rare"]
EVERY = range(2, 17)
MIXED = (0.0, MARGIN, 3 * MARGIN)  # no effect, one at the margin, a large one
PSEUDO = [(3, 2), (5, 2), (5, 4)]  # (seeds, arms) of pseudo-studies from real trials
DRAWS = 2000
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "calibration.md"
START = "<!-- made by python -m benchmarks.verdicts -->"


def cells(studies: int) -> Iterator[Rate]:
    """Simulate every cell; each has random numbers of its own."""
    draw = iter(range(1_000_000))
    for noise in NOISE:
        for m in CONTRASTS:
            for n in SEEDS:
                yield false_verdicts(noise, [n], m, studies=studies, draw=next(draw))
    for noise in PROMISED:
        for m in CONTRASTS:
            for n in SEEDS:
                how: dict[str, Any] = {"studies": studies, "draw": next(draw)}
                what = "false verdict, every arm at the margin"
                yield false_verdicts(noise, [n], m, truth=(MARGIN,), what=what, **how)
                if m > 1:
                    what = "false verdict, one arm of several differs"
                    yield false_verdicts(noise, [n], m, truth=[3 * PAIRED_SD] + [0.0] * (m - 1), what=what, **how)
                    yield coverage(noise, n, m, truth=MIXED, decided=True, **how)
                yield coverage(noise, n, m, **how)
                yield power(noise, n, m, **how)
    for noise in PROMISED:
        for m in CONTRASTS:
            for last in (2, 5):
                how = {"studies": studies, "draw": next(draw)}
                what = f"false verdict, a look after every seed from 2 to 16, to be decided at {last}"
                yield false_verdicts(noise, EVERY, m, last=last, what=what, **how)
            for looks in ((4, 8, 16), (2, 4, 8)):
                what = f"false verdict, looks planned at {', '.join(map(str, looks))} seeds"
                yield false_verdicts(noise, looks, m, what=what, studies=studies, draw=next(draw))


def count() -> int:
    """Return how many cells there are, for the bar."""
    sizes = len(SEEDS) * len(CONTRASTS)
    several = len(SEEDS) * (len(CONTRASTS) - 1)
    return len(NOISE) * sizes + len(PROMISED) * (3 * sizes + 2 * several + 4 * len(CONTRASTS))


def broken(rate: Rate) -> bool:
    """Return whether a promise is broken: errors above 5%, coverage below 95%, power below the stated 80%.

    Judged by the interval; power is exactly 80% for normal noise, so there by a chance of one in ten thousand.
    """
    if rate.promised == POWER:
        return rate.hits < stats.binom.ppf(1e-4, rate.trials, POWER)
    return rate.low > rate.promised if rate.promised == ALPHA else rate.high < rate.promised


def tables(rates: Sequence[Rate]) -> str:
    """Format all rates as Markdown, a table per question: rows are noise and contrasts, columns numbers of seeds."""
    blocks = []
    for what in dict.fromkeys(rate.what for rate in rates):
        of = [rate for rate in rates if rate.what == what]
        seeds = list(dict.fromkeys(rate.seeds for rate in of))
        promise = f"at most {of[0].promised:.0%}" if of[0].promised == ALPHA else f"{of[0].promised:.0%}"
        lines = [f"### {what[0].upper()}{what[1:]}", "", f"Promised: {promise}. Bold: a broken promise.", ""]
        lines += [f"| noise | contrasts | {' | '.join(f'{n} seeds' for n in seeds)} |", "|---" * (len(seeds) + 2) + "|"]
        for noise in dict.fromkeys(rate.noise for rate in of):
            for m in CONTRASTS:
                row = [rate for rate in of if (rate.noise, rate.contrasts) == (noise, m)]
                if row:
                    lines.append(f"| {noise} | {m} | {' | '.join(map(_cell, row))} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(rate: Rate) -> str:
    text = f"{100 * rate.rate:.2f}% ({100 * rate.low:.2f} to {100 * rate.high:.2f})"
    return f"**{text}**" if broken(rate) else text


def real(scale: str) -> list[TrialsRate]:
    """Draw pseudo-studies from the finished trials of study `aa` whose arms differ in their seeds alone."""
    from ablations.reporting.words import text_of
    from ablations.trials.results import results
    from ablations.trials.trials import stored

    study = text_of(stored("aa", scale))
    done = pd.DataFrame(results("aa", scale=scale))
    done = done[(done["status"] == "finished") & done["arm"].isin(study.identical)]
    metrics = [metric for metric in study.metrics if metric in done]
    families = [metrics, *([metric] for metric in metrics)]
    sizes = [(n, arms) for n, arms in PSEUDO if len(done) >= 2 * n * arms]
    return [from_trials(done, of, n, arms, DRAWS) for of in track(families, "real trials") for n, arms in sizes]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40_000, help="simulated studies per rate")
    parser.add_argument("--aa", metavar="SCALE", help="also the finished trials of study aa at this scale")
    arguments = parser.parse_args()
    if different := [noise for noise in NOISE if not judged_alike(noise, 100)]:
        print(f"simulated studies are not judged as reports are: {', '.join(different)}")
        return 1
    rates = list(track(cells(arguments.studies), "simulated studies", total=count()))
    wrong = [rate for rate in rates if broken(rate) and rate.noise in PROMISED]
    trials = real(arguments.aa) if arguments.aa else []
    result = {
        "studies": arguments.studies,
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
        "noise": NOISE,
        "rates": [rate._asdict() for rate in rates],
        "broken": [rate._asdict() for rate in wrong],
        "trials": [rate._asdict() for rate in trials],
    }
    write_json(HERE / "results" / "verdicts.json", result)
    write_text(PAGE, f"{PAGE.read_text().partition(START)[0]}{START}\n\n{tables(rates)}\n")
    for rate in wrong:
        print(f"broken: {json.dumps(rate._asdict())}")
    worst = max((rate for rate in rates if rate.promised == ALPHA and rate.noise in PROMISED), key=lambda r: r.rate)
    print(f"{len(rates)} rates of {arguments.studies:,} studies, {len(wrong)} broken promises; highest: {worst}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
