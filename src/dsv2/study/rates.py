"""Learning rates: which arms of a study differ in nothing else, and which rate is the best of theirs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from dsv2.config import ConfigBase, digest, plain, structure
from dsv2.storage.rundir import finished
from dsv2.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Curve(ConfigBase):
    """A metric over the learning rate, of arms of a study that differ in nothing else."""

    of: str  # the arms, as in mla_lr* for mla_lr0.5 and mla_lr1
    metric: str
    better: Literal["lower", "higher"]
    rates: tuple[float, ...]  # highest learning rates, ascending
    values: tuple[tuple[float, ...], ...]  # of the metric at the end, by rate and seed

    def __post_init__(self) -> None:
        grows = all(low < high for low, high in itertools.pairwise(self.rates))
        self.require(len(self.rates) > 1 and grows, "rates", "at least two, ascending")
        whole = len(self.values) == len(self.rates) and all(self.values)
        self.require(whole, "values", "at least one per rate")

    @property
    def means(self) -> list[float]:
        """Mean over seeds at each rate."""
        return [fmean(values) for values in self.values]

    @property
    def best(self) -> float:
        """The rate with the best mean."""
        means = self.means
        return self.rates[means.index(min(means) if self.better == "lower" else max(means))]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest that was tried, so that a better one may lie beyond."""
        return self.best in (self.rates[0], self.rates[-1])


def families(configs: Mapping[str, Run.Config], offsets: Mapping[str, int]) -> dict[str, dict[float, str]]:
    """Return the arms that differ in their learning rate alone, by rate, ascending; several per family.

    `configs` are the runs of all arms, `offsets` what is added to their seeds. A family is named by its arms, as in
    mla_lr* for mla_lr0.5 and mla_lr1.
    """
    alike: dict[str, dict[float, str]] = {}
    for arm, run in configs.items():
        rest = replace(run, optim=replace(run.optim, lr=1.0, lr_factor=1.0))
        alike.setdefault(digest(plain(rest, identity=True), offsets[arm]), {})[run.optim.highest_lr] = arm
    found = [dict(sorted(arms.items())) for arms in alike.values() if len(arms) > 1]
    return {_name(list(arms.values())): arms for arms in found}


def _name(arms: Sequence[str]) -> str:
    start = _common(arms)
    return f"{start}*{_common([arm[len(start) :][::-1] for arm in arms])[::-1]}"


def _common(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def read_curve(
    of: str, folders: Mapping[float, Sequence[Path]], metric: str, better: Literal["lower", "higher"]
) -> Curve | None:
    """Read a curve from the folders of trials, by rate and seed; None unless all have finished and have the metric."""
    values = []
    for trials in folders.values():
        results = [finished(folder) for folder in trials]
        measured = [result["metrics"].get(metric) for result in results if result is not None]
        if len(measured) < len(trials) or None in measured:
            return None
        values.append(tuple(measured))
    return Curve(of=of, metric=metric, better=better, rates=tuple(folders), values=tuple(values))


def curves_of(nodes: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the curves of a study's arms, from how its stored definition has them. Raises ConfigError."""
    return {arm: structure(node, Curve, f"lr_curves.{arm}") for arm, node in nodes.items()}


def node_of(curve: Curve) -> dict[str, Any]:
    """Return how the stored definition of a study has a curve."""
    return {name: value for name, value in plain(curve).items() if name != "_target_"}
