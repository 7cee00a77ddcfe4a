"""Whether training ends where it ended before, with each compiled op alone and with all of them.

    python -m benchmarks.kernel_equivalence [--seeds 8] [--arms paper paper_limited] [--variants all ...]

Equal first steps are not equal training: an op that is slightly biased agrees in the first gradients and moves the loss
of a finished run. So every op trains whole runs of `balance_losses` at smoke, paired by seed with plain torch. The
yardstick is plain torch from initial weights that differ by one part in ten million: what rounding alone does. An op
passes if the 95% interval of its mean difference contains 0 and lies within the margin, and if its differences spread
no more than three times the yardstick's. `benchmarks/results/kernel_equivalence.json` keeps the last row of every arm
and variant; plain torch, with which they are paired, repeats itself bit by bit.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ablations import study
from dsv2.kernels.choice import OPS, using
from dsv2.statistics.paired import t_interval
from dsv2.training.fit import fit
from dsv2.training.machine import prepare
from dsv2.training.module import Module
from dsv2.training.run import Run

MARGIN = 0.002  # nats: a tenth of the margin within which studies call losses equivalent
NOISE = 1e-7  # relative, of the yardstick's initial weights
WIDEST = 3  # times the yardstick's spread
PLAIN, YARDSTICK, ALL = "torch", "torch, weights perturbed", "all"
VARIANTS = (*OPS["cpu"], ALL)
RESULT = Path(__file__).parent / "results" / "kernel_equivalence.json"


class Perturbed(Module):
    """A module whose initial weights are off by `NOISE`."""

    def __init__(self, run: Run.Config) -> None:
        super().__init__(run)
        generator = torch.Generator().manual_seed(run.seed)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=generator))


def final_loss(task: tuple[str, int, str], overrides: list[str]) -> float:
    """Train one arm from one seed with one variant, and return its validation loss."""
    arm, seed, variant = task
    torch.set_num_threads(1)
    prepare()
    run = replace(study("balance_losses", scale="smoke", overrides=overrides).configs[arm], seed=seed)
    ops = OPS["cpu"] if variant == ALL else () if variant in (PLAIN, YARDSTICK) else (variant,)
    with tempfile.TemporaryDirectory() as folder, using("cpu", ops):
        result = fit(run, Path(folder), module=Perturbed if variant == YARDSTICK else Module)
    return float(result["metrics"]["val/loss"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=["paper", "paper_limited"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="OP", help="ops, or all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--overrides", nargs="*", default=[], help="further overrides of every run")
    arguments = parser.parse_args()
    quiet = ["logger.wandb.mode=disabled", "trainer.kernels=cpu", *arguments.overrides]
    variants = [PLAIN, YARDSTICK, *arguments.variants]
    tasks = [(arm, seed, variant) for seed in range(arguments.seeds) for arm in arguments.arms for variant in variants]
    losses = {}
    columns = (SpinnerColumn(), TextColumn("{task.completed} of {task.total} runs"), TimeRemainingColumn())
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool, Progress(*columns) as progress:
        shown = progress.add_task("", total=len(tasks))
        for task, loss in zip(tasks, pool.imap(partial(final_loss, overrides=quiet), tasks), strict=True):
            losses[task] = loss
            progress.advance(shown)
    table = Table(title=f"Final validation loss minus plain torch's, {arguments.seeds} seeds, in thousandths of a nat")
    for column in ("arm", "variant", "mean", "95% interval", "spread", "largest", "passes"):
        table.add_column(column, justify="left" if column in ("arm", "variant") else "right")
    rows = []
    for arm in arguments.arms:
        yardstick = np.nan
        for variant in variants[1:]:
            pairs = [losses[arm, seed, variant] - losses[arm, seed, PLAIN] for seed in range(arguments.seeds)]
            differences = np.array(pairs)
            low, high = t_interval(differences)
            spread = float(differences.std(ddof=1))
            yardstick = spread if variant == YARDSTICK else yardstick
            passes = low <= 0 <= high and low > -MARGIN and high < MARGIN and spread <= WIDEST * yardstick
            rows.append({"arm": arm, "variant": variant, "differences": pairs, "passes": bool(passes)})
            numbers = [differences.mean(), low, high, spread, np.abs(differences).max()]
            mean, lowest, highest, sd, largest = (f"{1000 * number:+.3f}" for number in numbers)
            table.add_row(arm, variant, mean, f"[{lowest}, {highest}]", sd[1:], largest[1:], "yes" if passes else "no")
    Console().print(table)
    stored = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    merged = {(row["arm"], row["variant"]): row for row in (*stored, *rows)}
    kept = {"margin": MARGIN, "noise": NOISE, "torch": torch.__version__, "rows": list(merged.values())}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")
    return 0 if all(row["passes"] for row in rows if row["variant"] != YARDSTICK) else 1


if __name__ == "__main__":
    sys.exit(main())
