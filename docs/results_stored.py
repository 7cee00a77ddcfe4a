"""What the committed results of a study say, as text: means, differences paired by seed, seeds that learned a task."""

import re
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ablations.reporting.write import judged_again
from dsv2.metrics import quantity
from dsv2.statistics.paired import Values, t_interval

RESULTS = Path(__file__).parents[1] / "results"
LOADS = (
    "routing/max_violation",
    "routing/device_max_violation",
    "routing/received_max_violation",
    "routing/overflow",
    "routing/entropy",
)
LOSS = "val/loss"


class Stored:
    """The committed results of one study at one scale."""

    def __init__(self, study: str, scale: str = "tiny") -> None:
        self.folder, self.scale = RESULTS / study / scale, scale

    @classmethod
    def largest(cls, study: str) -> "Stored":
        """Return the results at the largest scale that is stored."""
        return cls(study, next(scale for scale in ("tiny", "smoke") if (RESULTS / study / scale).is_dir()))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per arm: n, and mean and standard deviation of each metric."""
        return pd.read_csv(self.folder / "table.csv", index_col="arm", float_precision="round_trip")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: arm, seed and metrics."""
        return pd.read_csv(self.folder / "trials.csv", dtype={"arm": str}, float_precision="round_trip")

    @cached_property
    def report(self) -> str:
        return (self.folder / "report.md").read_text()

    @property
    def seeds(self) -> int:
        """The number of finished seeds of each arm; the fewest if they differ."""
        return int(self.table["n"].min())

    def mean(self, arm: str, metric: str = LOSS) -> float:
        return float(self.table[f"{metric} mean"][arm])

    def spread(self, arm: str, metric: str, form: str) -> str:
        """Format mean ± standard deviation; a share without its deviation."""
        mean, sd = self.mean(arm, metric), self.table[f"{metric} sd"][arm]
        return f"{mean:{form}}" if form.endswith("%") else f"{mean:{form}} ± {sd:{form}}"

    def paired(self, arm: str, baseline: str, metric: str = LOSS) -> Values:
        """Return arm minus baseline for every seed."""
        values = self.trials.pivot(index="seed", columns="arm", values=metric)
        return (values[arm] - values[baseline]).dropna().to_numpy(float)

    def difference(self, arm: str, baseline: str, metric: str = LOSS) -> str:
        """Format arm minus baseline, with its 95% t interval."""
        each = self.paired(arm, baseline, metric)
        low, high = t_interval(each)
        return f"{each.mean():+.3f} [{low:+.3f}, {high:+.3f}]"

    def verdicts(self) -> str:
        """List the verdicts on the contrasts, each with its interval, computed from the trials."""
        return "; ".join(
            f"{quantity(effect.metric).name} (`{effect.arm}`) {effect.word}, "
            f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]"
            for effect in judged_again(self.folder)
        )

    def learned(self, arm: str) -> str:
        """Return how many seeds learned to recall, as in "4 of 5"."""
        tasks = re.split(r"\n## (?:Exploratory: tasks|Tasks)\n", self.report)[1].partition("\n## ")[0]
        found = re.search(rf"^\| {re.escape(arm)} \| (\d+ of \d+)", tasks, flags=re.M)
        if found is None:
            raise ValueError(f"{self.folder / 'report.md'}: no row for {arm} among its tasks")
        return found[1]

    def share_of_noise(self, baseline: str, metric: str) -> tuple[float, float]:
        """Return the sd of the paired differences over that of unpaired ones, of the arms with least and greatest."""
        values = self.trials.pivot(index="seed", columns="arm", values=metric)
        others = values.drop(columns=baseline)
        ratios = others.sub(values[baseline], axis=0).std() / np.sqrt(others.var() + values[baseline].var())
        return float(ratios.min()), float(ratios.max())


def orders_kept(low: Stored, high: Stored, metrics: tuple[str, ...]) -> tuple[int, int]:
    """Count the pairs of arms that have the same order at both scales, over all metrics, and all such pairs."""
    kept = pairs = 0
    arms = [arm for arm in low.table.index if arm in high.table.index]
    for metric in metrics:
        for i, arm in enumerate(arms):
            for other in arms[:i]:
                signs = [np.sign(stored.mean(arm, metric) - stored.mean(other, metric)) for stored in (low, high)]
                kept, pairs = kept + (signs[0] == signs[1]), pairs + 1
    return int(kept), pairs
