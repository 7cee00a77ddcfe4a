"""`study(...)`: run and query a study at a scale from a notebook or script."""

import copy
import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.request import Request
from ablations.trials.results import Results, results_of
from ablations.trials.trials import Study
from dsv2.config import ConfigError, structure
from dsv2.training.machine import require_accelerator

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = ["arm", "about", "total_params", "active_params", "flops_per_token", "kv_elements_per_token", "tokens", "seeds"]


class StudyHandle(Study):
    """A study with methods to run it and to read its results; its data are in `Study`."""

    def run(self, workers: int | None = None, launcher: str = "local") -> bool:
        """Run unfinished trials and write the report; return True if every trial finished.

        In a notebook, the trials run in a separate process whose progress is shown live. It survives an interrupted
        cell or a restarted kernel; calling `run` again reattaches to it, and `stop` ends it.
        """
        from ablations.running.attach import in_notebook

        require_runnable(self, workers, launcher)
        if in_notebook():
            from ablations.running.live import run_live

            return run_live(self, workers=workers, launcher=launcher)
        return run_study(self, workers=workers, launcher=launcher)

    def stop(self) -> bool:
        """Stop the process started by `run` in a notebook; it can be resumed. Return False if there is none."""
        from ablations.running.attach import find

        runner = find(self.folder)
        if runner is not None:
            runner.stop()
        return runner is not None

    def results(self) -> Results:
        """Return the stored results, one row per arm and seed."""
        return results_of(self)

    def verdict(self) -> str:
        """Return the verdicts of the stored results in sentences; if trials are missing, it says so.

        This is a look at the study, which is recorded in its folder.
        """
        from ablations.reporting.findings import Findings, looked, without_failed
        from ablations.reporting.summary import said
        from ablations.reporting.words import text_of

        findings = looked(self, without_failed(Findings(study=text_of(self), results=self.results())))
        lines = [*said(findings), *findings.problems]
        return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)

    def with_arm(self, name: str, overrides: Sequence[str], about: str | None = None) -> "StudyHandle":
        """Return this study with one more arm, in the same folder; finished trials are not run again.

        Raises ConfigError for a name in use, for a grid, and for anything else that is invalid in a study's file.
        """
        if self.file.grid is not None:
            raise ConfigError("arms", name, f"the arms of {self.name} are a grid, so none can be added")
        if not isinstance(name, str) or not isinstance(overrides, list | tuple):
            raise ConfigError("arms", name, 'a name, and a list of overrides as in ["loss.expert=0.1"]')
        if name in self.arms:
            raise ConfigError("arms", name, f"choose a new name; {self.name} has {', '.join(self.arms)}")
        node = copy.deepcopy(self.node) | {"name": self.name}
        node["arms"][name] = {"about": about or " ".join(overrides), "overrides": list(overrides)}
        extended = StudyHandle(node, self.scale, self.asked, self.overrides)
        extended.origin = self.origin  # it belongs to the same study
        return extended

    def __repr__(self) -> str:
        return f"study {self.name} at scale {self.scale}: {len(self.arms)} arms x {len(self.seeds)} seeds"

    def _repr_html_(self) -> str:
        table = self.accounting()[SHOWN].to_html(index=False, border=0)
        return f"<p><b>{html.escape(repr(self))}</b><br>{html.escape(self.file.question)}</p>{table}"


def study(
    name: str | Path | Mapping[str, Any],
    scale: str = "smoke",
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> StudyHandle:
    """Load a study at a scale: `configs/sweep/<name>.yaml`, the YAML file at the path `name`, or a dictionary.

    A dictionary has the contents of such a file, including `name`. Raises ConfigError (a ValueError) if it is invalid.
    """
    return StudyHandle(name, scale, seeds, overrides)


def require_runnable(study: Study, workers: int | None, launcher: str) -> None:
    """Raise ConfigError unless the study can be run as asked."""
    structure({"sweep": study.name, "workers": workers, "launcher": launcher}, Request)
    study.require_rates()
    if launcher == "local":
        for accelerator in {run.trainer.accelerator for run in study.configs.values()}:
            require_accelerator(accelerator)


def run_study(
    study: Study, *, workers: int | None, launcher: str, until_decided: bool = False, console: "Console | None" = None
) -> bool:
    """Run every unfinished trial, then write the report and print the verdicts; return True if all trials finished.

    With `until_decided`, the seeds are looked at one after the other, and no more are trained once every contrast is
    decided.
    The report covers all seeds of the study that are complete, not only those of this request (see `Study.reported`).
    A failing trial does not stop the others. On Ctrl-C the workers are stopped, their checkpoints kept, and
    KeyboardInterrupt is passed on to the caller.
    """
    require_runnable(study, workers, launcher)
    from ablations.reporting.early import UntilDecided
    from ablations.reporting.write import report_study
    from ablations.running.runner import run_trials, with_space
    from dsv2.report.terminal import open_console

    console = console or open_console()
    enough = UntilDecided(study, console) if until_decided else None
    finished = run_trials(study, workers=workers, launcher=launcher, console=console, enough=enough or (lambda: False))
    if enough is not None and enough.decided:
        study, finished = enough.study, True
    reported = study.reported()
    with_space(lambda: report_study(reported, console), console)
    if set(reported.seeds) != set(study.seeds):
        console.print(f"The report covers seeds {', '.join(map(str, reported.seeds))}")
    if study.report_folder.parent != study.folder:
        console.print(f"{study.folder / 'report'} stays as it is: it has more finished trials, of another request")
    return finished
