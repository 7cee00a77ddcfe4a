"""Group-sequential stopping: no more seeds than it takes to decide a study's contrasts, either way."""

from rich.console import Console

from ablations.reporting.findings import collect
from ablations.reporting.summary import said
from ablations.trials.trials import Study
from dsv2.config import ConfigError
from dsv2.storage.rundir import finished


class UntilDecided:
    """Called after every trial: looks at the study when the next number of seeds is complete.

    The numbers are those of `looks` in the study's file, else all from 2. Each look spends its part of the study's
    error rate, as if somebody had asked for the report (`ablations.trials.looks`).
    """

    def __init__(self, study: Study, console: Console) -> None:
        if not study.contrasts:
            raise ConfigError("until_decided", True, f"false, since {study.name} compares no arm with another")
        self.console, self.study, self.decided = console, study, False
        self.complete = 0  # seeds, from the first on, that have finished in every arm
        last = len(study.seeds)
        self.looks = [look for look in study.file.looks or range(2, last) if look < last]

    def __call__(self) -> bool:
        """Look if it is time to; return True if every contrast is decided, and keep the seeds of it in `study`."""
        self._count()
        if self.looks and self.complete >= self.looks[0]:
            self.looks = [look for look in self.looks if look > self.complete]
            part = self.study.with_seeds(self.study.seeds[: self.complete])
            findings = collect(part)
            for line in said(findings):
                self.console.print(f"  {line}", soft_wrap=True)
            words = [effect.word for effect in findings.verdicts]
            if words and "undecided" not in words:
                self.console.print(
                    f"  every contrast is decided after {self.complete} seeds; the others are not trained"
                )
                self.study, self.decided = part, True
        return self.decided

    def _count(self) -> None:
        """Count on; a trial is read once it has finished, and those behind an unfinished one not at all."""
        for seed in self.study.seeds[self.complete :]:
            if any(finished(trial.folder) is None for trial in self.study.trials if trial.seed == seed):
                return
            self.complete += 1
