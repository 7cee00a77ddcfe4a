"""A study file, a scale and seeds become trials; everything that would make the comparison unfair is refused here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from dsv2.analysis.accounting import account
from dsv2.config import CONFIG_DIR, ConfigBase, ConfigError, plain, structure
from dsv2.files import write_json
from dsv2.paths import runs_root
from dsv2.run import Run, load

if TYPE_CHECKING:
    import pandas as pd

EQUAL_WITHIN = 0.01  # largest relative difference that still counts as held equal
QUIET = ("trainer.progress=false",)  # a study shows one bar for all its trials
BUDGETS = ("total_params", "active_params", "flops_per_token", "kv_elements_per_token", "tokens")


@dataclass(frozen=True, kw_only=True)
class Arm(ConfigBase):
    """One side of the comparison."""

    about: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyFile(ConfigBase):
    """`configs/sweep/<name>.yaml`."""

    question: str
    prediction: str
    metric: str
    judged: dict[str, Literal["lower", "higher"]]
    equal: tuple[str, ...]
    baseline: str
    arms: dict[str, Any]  # name -> Arm
    published: str | None = None
    base: tuple[str, ...] = ()
    margin: dict[str, float] | None = None  # metric -> difference that would not matter

    def __post_init__(self) -> None:
        self.require(len(self.arms) >= 2, "arms", "at least two")
        self.require(self.baseline in self.arms, "baseline", f"one of the arms, {', '.join(self.arms)}")
        self.require(self.metric in self.judged, "metric", f"one of the judged metrics, {', '.join(self.judged)}")
        self.require(set(self.equal) <= set(BUDGETS), "equal", f"some of {', '.join(BUDGETS)}")
        unknown = set(self.margin or {}) - set(self.judged)
        self.require(not unknown, "margin", f"judged metrics only; not {', '.join(sorted(unknown))}")


@dataclass(frozen=True, kw_only=True)
class ScaleFile(ConfigBase):
    """`configs/scale/<name>.yaml`."""

    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One arm with one seed."""

    arm: str
    seed: int
    run: Run.Config
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"


class Study:
    """A study at a scale: its text, its arms, its trials and the folder they are stored in."""

    def __init__(self, name: str, scale: str, seeds: Sequence[int] | None, overrides: Sequence[str]) -> None:
        self.name, self.scale, self.overrides = name, scale, tuple(overrides)
        self.file: StudyFile = structure(_read("sweep", name), StudyFile)
        scale_file: ScaleFile = structure(_read("scale", scale), ScaleFile)
        self.seeds = tuple(scale_file.seeds if seeds is None else seeds)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", list(self.seeds), "at least one, each once")
        self.folder = runs_root() / name / scale
        self.arms = {arm: structure(node, Arm, f"arms.{arm}") for arm, node in self.file.arms.items()}
        self.configs = {
            name: replace(
                load([*scale_file.overrides, *self.file.base, *arm.overrides, *QUIET, *self.overrides]),
                study=self.name,
                arm=name,
            )
            for name, arm in self.arms.items()
        }
        self._refuse_duplicates()
        self._refuse_unequal()
        self.trials = [self._trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def _trial(self, arm: str, seed: int) -> Trial:
        run = replace(self.configs[arm], seed=seed)
        return Trial(arm, seed, run, self.folder / "trials" / run.fingerprint())

    def _refuse_duplicates(self) -> None:
        seen: dict[str, str] = {}
        for arm, run in self.configs.items():
            text = json.dumps(plain(run, identity=True), sort_keys=True)
            if text in seen:
                raise ConfigError(f"arms.{arm}", list(self.arms[arm].overrides), f"it is the same run as {seen[text]}")
            seen[text] = arm

    def _refuse_unequal(self) -> None:
        rows = self.budgets()
        for budget in self.file.equal:
            values = {row["arm"]: row[budget] for row in rows}
            reference = values[self.file.baseline]
            for arm, value in values.items():
                if abs(value - reference) > EQUAL_WITHIN * reference:
                    valid = f"within {EQUAL_WITHIN:.0%} of {self.file.baseline}'s {reference:,}, since `equal` names it"
                    raise ConfigError(f"arms.{arm}.{budget}", value, valid)

    def accounting(self) -> "pd.DataFrame":
        """One row an arm: arm, about, parameters, FLOPs and cache elements a token, tokens, steps, seeds."""
        import pandas as pd

        return pd.DataFrame(self.budgets())

    def budgets(self) -> list[dict[str, Any]]:
        """The rows of `accounting`, for callers that cannot wait for pandas."""
        rows = []
        for arm, run in self.configs.items():
            result, batches = account(run.model, context=run.trainer.sequence_length), run.trainer.batches()
            numbers = {name: getattr(result, name) for name in BUDGETS if name != "tokens"}
            rows.append(
                {"arm": arm, "about": self.arms[arm].about}
                | numbers
                | {"tokens": batches.total_tokens, "steps": batches.num_steps, "seeds": len(self.seeds)}
            )
        return rows

    def run(self, workers: int | None = None, launcher: str = "local") -> bool:
        """Run what is not finished yet and write the report; True if every trial finished."""
        from ablations.runner import run_study

        return run_study(self, workers=workers, launcher=launcher)

    def remember(self) -> None:
        """Note what was asked for, so that results and reports of this store speak of the same trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "study.json", {"seeds": self.seeds, "overrides": self.overrides})

    @property
    def command(self) -> str:
        """What a user types to run it."""
        seeds = f"'seeds=[{','.join(map(str, self.seeds))}]'"
        return " ".join(
            ["python -m ablations.run", f"sweep={self.name}", f"scale={self.scale}", seeds, *self.overrides]
        )


def study(name: str, scale: str = "smoke", seeds: Sequence[int] | None = None, overrides: Sequence[str] = ()) -> Study:
    """Load `configs/sweep/<name>.yaml` at a scale; ConfigError (a ValueError) names what is wrong with it."""
    return Study(name, scale, seeds, overrides)


def stored(name: str, scale: str = "smoke") -> Study:
    """The study with the seeds and overrides it was last run with."""
    path = runs_root() / name / scale / "study.json"
    try:
        asked: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise ConfigError("sweep", name, f"{path} is damaged; run the study again to renew it") from None
    return Study(name, scale, asked.get("seeds"), asked.get("overrides", ()))


def _read(group: str, name: str) -> dict[str, Any]:
    path = CONFIG_DIR / group / f"{name}.yaml"
    if not path.is_file():
        options = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ConfigError(group, name, f"choose one of {options}")
    node = yaml.safe_load(path.read_text())
    if not isinstance(node, dict):
        raise ConfigError(group, name, f"{path} must hold a mapping")
    return node
