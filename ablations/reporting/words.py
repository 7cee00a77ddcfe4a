"""The text of a report about its study, and the format of its numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsv2.statistics.contrast import Contrast

if TYPE_CHECKING:
    from ablations.trials.trials import Study
    from dsv2.study.files import Arm
    from dsv2.study.rates import Curve


@dataclass(frozen=True, kw_only=True)
class StudyText:
    """The description of a study; with it, a report needs neither a model nor torch."""

    name: str
    scale: str
    question: str
    prediction: str
    metric: str  # the metric that answers the question
    metrics: Mapping[str, str]  # metric of the report -> better direction, "lower" or "higher"
    equal: Sequence[str]  # budgets that are held equal
    contrasts: Sequence[Contrast]  # what gets a verdict
    decided_at: int  # number of seeds at which the study is to be decided
    baseline: str
    arms: Mapping[str, str]  # arm -> its description, in order
    seeds: Sequence[int]
    published: str | None = None
    shows_at: str | None = None
    baselines: Mapping[str, str] = field(default_factory=dict)  # arm -> its baseline, if not the study's
    differs: Mapping[str, Sequence[str]] = field(default_factory=dict)  # arm -> budgets that only it does not hold
    identical: Sequence[str] = ()  # in an A/A study, the arms that differ only in their seeds
    levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # for a grid: arm -> level of each factor
    adjusted: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)  # arm -> key -> from and to
    rates: Mapping[str, float] = field(default_factory=dict)  # arm -> its highest learning rate
    lr_from: str | None = None  # the study in which the rates of arms were the best of their own
    curves: Mapping[str, "Curve"] = field(default_factory=dict)  # arm -> what that study measured
    families_of_rates: Mapping[str, Mapping[float, str]] = field(
        default_factory=dict
    )  # of arms that differ in the rate

    def baseline_of(self, arm: str) -> str:
        return self.baselines.get(arm, self.baseline)

    def families(self) -> dict[str, list[str]]:
        """Map each baseline to the arms compared with it, itself included."""
        families: dict[str, list[str]] = {}
        for arm in self.arms:
            families.setdefault(self.baseline_of(arm), []).append(arm)
        return families

    def design(self) -> dict[str, dict[str, Any]]:
        """Map each arm of a grid to its levels of the varying factors, named by the last part of their keys."""
        cells = {arm: {key.rpartition(".")[2]: level for key, level in c.items()} for arm, c in self.levels.items()}
        names = next(iter(cells.values()), {})
        varied = [name for name in names if len({str(cell[name]) for cell in cells.values()}) > 1]
        return {arm: {name: cell[name] for name in varied} for arm, cell in cells.items()} if varied else {}


def text_of(study: "Study") -> StudyText:
    """Build the description of a study from its file and plan."""
    return StudyText(
        name=study.name,
        scale=study.scale,
        question=study.file.question,
        prediction=study.file.prediction,
        metric=study.file.metric,
        metrics=study.file.judged,
        equal=study.file.equal,
        contrasts=study.contrasts,
        decided_at=study.decided_at,
        baseline=study.file.baseline,
        arms={name: about(arm) for name, arm in study.arms.items()},
        seeds=study.seeds,
        published=study.file.published_text,
        shows_at=study.file.shows_at,
        baselines={arm: study.baseline_of(arm) for arm in study.arms},
        differs={name: arm.differs for name, arm in study.arms.items()},
        identical=_identical(study),
        levels=study.file.levels(),
        adjusted={name: study.adjusted[name] for name in study.arms},
        rates={name: run.optim.highest_lr for name, run in study.configs.items() if run.trainer.tokens},
        lr_from=study.file.lr_from,
        curves=study.curves,
        families_of_rates=study.families(),
    )


def about(arm: "Arm") -> str:
    """Describe an arm, and say from which other one it starts and which it reads."""
    starts = f"; starts from the weights of {arm.init_from}" if arm.init_from else ""
    read = " and ".join(dict.fromkeys(arm.reads.values()))
    return arm.about + starts + (f"; reads the reward model of {read}" if read else "")


def _identical(study: "Study") -> list[str]:
    """Return the baseline and the arms with seeds of their own, if there are any."""
    moved = [name for name, arm in study.arms.items() if arm.seed_offset]
    return [study.file.baseline, *moved] if moved else []


def number(value: Any) -> str:
    """Format a number for a table; None and NaN give an empty string."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, int | float) and not hasattr(value, "dtype"):
        return str(value)
    if float(value).is_integer() and (abs(value) >= 1 or value == 0):
        return f"{int(value):,}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def spread(mean: float, sd: float) -> str:
    """Format mean ± standard deviation, leaving out what is NaN."""
    fixed = "" if math.isnan(mean) else f"{mean:.3f}"
    return fixed if math.isnan(sd) else f"{fixed} ± {sd:.3f}"
