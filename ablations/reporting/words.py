"""What a report says of a study beside its numbers, and how it writes numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsv2.statistics.paired import ALPHA

if TYPE_CHECKING:
    from ablations.trials.trials import Study


@dataclass(frozen=True, kw_only=True)
class StudyText:
    """The words of a study; a report takes them from here alone, so that it needs no model and no torch."""

    name: str
    scale: str
    question: str
    prediction: str
    metric: str  # the one the question is about
    metrics: Mapping[str, str]  # every judged metric to its better direction, "lower" or "higher"
    equal: Sequence[str]  # what is held equal
    margin: Mapping[str, float]  # metric to the difference that would not matter
    baseline: str
    arms: Mapping[str, str]  # in order, each with a line that describes it
    seeds: Sequence[int]
    published: str | None = None
    shows_at: str | None = None
    baselines: Mapping[str, str] = field(default_factory=dict)  # arm -> its own baseline, where it is another one
    differs: Mapping[str, Sequence[str]] = field(default_factory=dict)  # arm -> what it alone does not hold equal
    identical: bool = False  # an A/A study: its arms differ in their seeds alone
    levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # arm -> level of each factor, of a grid

    def families(self) -> dict[str, list[str]]:
        """Map each baseline to the arms that are compared with it, itself among them; Holm corrects over these."""
        families: dict[str, list[str]] = {}
        for arm in self.arms:
            families.setdefault(self.baselines.get(arm, self.baseline), []).append(arm)
        return families

    def design(self) -> dict[str, dict[str, Any]]:
        """Map each arm to its level of each factor that varies, by the factor's last word; empty but for a grid."""
        cells = {arm: {key.rpartition(".")[2]: level for key, level in c.items()} for arm, c in self.levels.items()}
        names = next(iter(cells.values()), {})
        varied = [name for name in names if len({str(cell[name]) for cell in cells.values()}) > 1]
        return {arm: {name: cell[name] for name in varied} for arm, cell in cells.items()} if varied else {}

    @property
    def against(self) -> str:
        """How its arms are compared, as the beginning of a sentence."""
        baselines = " and ".join(self.families())
        return f"Against {baselines}, {len(self.seeds)} paired seeds, p < {ALPHA} after Holm's correction"


def text_of(study: "Study") -> StudyText:
    """Take the words of a study from its file and its plan."""
    return StudyText(
        name=study.name,
        scale=study.scale,
        question=study.file.question,
        prediction=study.file.prediction,
        metric=study.file.metric,
        metrics=study.file.judged,
        equal=study.file.equal,
        margin=study.file.margin or {},
        baseline=study.file.baseline,
        arms={name: arm.about for name, arm in study.arms.items()},
        seeds=study.seeds,
        published=study.file.published_text,
        shows_at=study.file.shows_at,
        baselines={arm: study.baseline_of(arm) for arm in study.arms},
        differs={name: arm.differs for name, arm in study.arms.items()},
        identical=any(arm.seed_offset for arm in study.arms.values()),
        levels=study.file.levels(),
    )


def number(value: Any) -> str:
    """Write a number as a table shows it; an empty string for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, int | float) and not hasattr(value, "dtype"):
        return str(value)
    if float(value).is_integer() and (abs(value) >= 1 or value == 0):
        return f"{int(value):,}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def spread(mean: float, sd: float) -> str:
    """Write mean ± standard deviation, as far as there are any."""
    fixed = "" if math.isnan(mean) else f"{mean:.3f}"
    return fixed if math.isnan(sd) else f"{fixed} ± {sd:.3f}"
