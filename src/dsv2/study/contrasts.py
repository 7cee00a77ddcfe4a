"""The contrasts that a study declares: what it gets verdicts on, named before it is run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dsv2.config import ConfigBase, ConfigError, structure
from dsv2.statistics.contrast import Contrast

MOST = 20  # contrasts of one study; more would leave next to nothing for each


@dataclass(frozen=True, kw_only=True)
class Declared(ConfigBase):
    """An entry of `contrasts` in a study's file: an arm against another, by default its own baseline."""

    arm: str
    against: str | None = None  # the other arm; None: the arm's baseline
    metric: str  # one of the judged metrics
    margin: float  # largest difference that does not matter, in the metric's unit
    predicted: Literal["better", "worse", "equivalent"] | None = None  # the verdict that the study expects

    def __post_init__(self) -> None:
        self.require(0 < self.margin < math.inf, "margin", "positive and finite, in the metric's unit")


def declared(
    nodes: Sequence[Any] | None,
    *,
    arms: Sequence[str],
    baseline_of: Callable[[str], str],
    judged: Mapping[str, str],
    metric: str,
    margins: Mapping[str, float],
) -> tuple[Contrast, ...]:
    """Return a study's contrasts; without `nodes`, every arm against its baseline in `metric`. Raises `ConfigError`.

    The margin of a contrast that was not declared is that of `margins`, or NaN.
    """
    compared = [arm for arm in arms if baseline_of(arm) != arm]
    if nodes is None:
        margin = margins.get(metric, math.nan)
        return tuple(Contrast(arm, baseline_of(arm), metric, margin) for arm in compared)
    if not 1 <= len(nodes) <= MOST:
        raise ConfigError("contrasts", len(nodes), f"from 1 to {MOST} contrasts, or none at all for the default")
    if margins:
        raise ConfigError("margin", dict(margins), "none beside `contrasts`, which have margins of their own")
    contrasts: list[Contrast] = []
    for index, node in enumerate(nodes):
        at = f"contrasts.{index}"
        if not isinstance(node, Mapping):
            raise ConfigError(at, node, "a mapping with arm, metric and margin")
        entry: Declared = structure(node, Declared, at)
        if entry.against is None and entry.arm not in compared:
            raise ConfigError(
                f"{at}.arm", entry.arm, f"an arm with a baseline other than itself, {', '.join(compared)}"
            )
        against = baseline_of(entry.arm) if entry.against is None else entry.against
        for key, arm, others in ("arm", entry.arm, arms), ("against", against, [a for a in arms if a != entry.arm]):
            if arm not in others:
                raise ConfigError(f"{at}.{key}", arm, f"one of the arms {', '.join(others)}")
        if entry.metric not in judged:
            raise ConfigError(f"{at}.metric", entry.metric, f"one of the judged metrics, {', '.join(judged)}")
        contrast = Contrast(entry.arm, against, entry.metric, entry.margin, entry.predicted)
        if any({contrast.arm, against} == {o.arm, o.baseline} and contrast.metric == o.metric for o in contrasts):
            raise ConfigError(at, [entry.arm, entry.metric], "each pair of arms and metric once")
        contrasts.append(contrast)
    return tuple(contrasts)
