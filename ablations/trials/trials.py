"""A study at a scale as trials: every arm with every seed, on the study's own data and on its probes."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2.config import ConfigError
from dsv2.storage.files import write_json
from dsv2.storage.rundir import runs_root
from dsv2.study.plan import Plan
from dsv2.training.run import Run, folder_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Trial:
    """One arm with one seed; on a probe, the same model trained on a synthetic task."""

    arm: str
    seed: int
    run: Run.Config
    folder: Path
    probe: str | None = None

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}" + (f"-{self.probe}" if self.probe else "")


class Study(Plan):
    """A study at a scale: its text, its arms, its trials and the folder they are stored in."""

    def __init__(self, name: str, scale: str, seeds: Sequence[int] | None, overrides: Sequence[str]) -> None:
        self.source = name  # as it was asked for: a name, or the path of a file
        self.asked = None if seeds is None else tuple(seeds)
        super().__init__(name, scale, overrides)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", list(self.seeds), "at least one, each once")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError("seeds", list(self.seeds), "0 to 2^32 - 1")
        self.folder = runs_root() / self.name / scale
        self.trials = [
            self._trial(arm, seed, probe)
            for seed in self.seeds
            for arm in self.arms
            for probe in (None, *self.file.probes)
        ]
        first: dict[Path, Trial] = {}
        for trial in self.trials:
            if (other := first.setdefault(trial.folder, trial)) is not trial:
                moved = max(trial.arm, other.arm, key=lambda arm: self.arms[arm].seed_offset)
                valid = f"apart from the seeds of other arms: {trial.name} and {other.name} are one run"
                raise ConfigError(f"arms.{moved}.seed_offset", self.arms[moved].seed_offset, valid)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those asked for, else the scale's and as many more as the study's claim needs."""
        return super().seeds if self.asked is None else self.asked

    def _trial(self, arm: str, seed: int, probe: str | None) -> Trial:
        run = replace(self.run_of(arm, probe), seed=seed + self.arms[arm].seed_offset)
        return Trial(arm, seed, run, folder_of(run, self.folder / "trials"), probe)

    def accounting(self) -> "pd.DataFrame":
        """One row an arm: arm, about, parameters, FLOPs and cache elements a token, tokens, steps, seeds, mismatch."""
        import pandas as pd

        return pd.DataFrame(self.budgets())

    def run(self, workers: int | None = None, launcher: str = "local") -> bool:
        """Run what is not finished yet and write the report; True if every trial finished.

        In a notebook the same command runs in a process of its own, shown live. It outlives an interrupted cell and a
        restarted kernel, and this watches it again; `stop` ends it.
        """
        from ablations.running.attach import in_notebook

        if in_notebook():
            from ablations.running.live import run_live

            return run_live(self, workers=workers, launcher=launcher)
        from ablations.running.runner import run_study

        return run_study(self, workers=workers, launcher=launcher)

    def stop(self) -> bool:
        """End the process that a notebook's `run` started, resumably; False where there is none."""
        from ablations.running.attach import find

        runner = find(self.folder)
        if runner is not None:
            runner.stop()
        return runner is not None

    def verdict(self) -> str:
        """What its stored results say, in sentences; that there is no verdict where trials are missing."""
        from ablations.reporting.collect import verdict

        return verdict(self)

    def remember(self) -> None:
        """Note what was asked for, so that results and reports of this store speak of the same trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "study.json", {"source": self.source, "seeds": self.asked, "overrides": self.overrides}
        )

    @property
    def arguments(self) -> list[str]:
        """What `python -m ablations.run` is given to run it."""
        seeds = [] if self.asked is None else [f"seeds=[{','.join(map(str, self.asked))}]"]
        return [f"sweep={self.source}", f"scale={self.scale}", *seeds, *self.overrides]

    @property
    def command(self) -> str:
        """What a user types to run it."""
        return f"python -m ablations.run {shlex.join(self.arguments)}"


def stored(name: str, scale: str = "smoke") -> Study:
    """The study with the seeds and overrides it was last run with."""
    path = runs_root() / Path(name).stem / scale / "study.json"
    try:
        asked: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        source, seeds, overrides = (asked.get(key) for key in ("source", "seeds", "overrides"))
        whole = isinstance(overrides or [], list) and all(isinstance(seed, int) for seed in seeds or ())
    except (ValueError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise ConfigError("sweep", name, f"{path} is damaged; run the study again to renew it")
    return Study(source or name, scale, seeds, overrides or ())
