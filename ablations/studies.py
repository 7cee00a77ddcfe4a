"""`study(...)`: a study at a scale to be run and asked from a notebook or a script."""

import copy
import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablations.trials.results import Results, results_of
from ablations.trials.trials import Study
from dsv2.config import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = ["arm", "about", "total_params", "active_params", "flops_per_token", "kv_elements_per_token", "tokens", "seeds"]


class StudyHandle(Study):
    """A study with what can be done with it; everything else is in `Study`, as data."""

    def run(self, workers: int | None = None, launcher: str = "local") -> bool:
        """Run what is not finished yet and write the report; True if every trial finished.

        In a notebook the same command runs in a process of its own, shown live. It outlives an interrupted cell and a
        restarted kernel, and this watches it again; `stop` ends it.
        """
        from ablations.running.attach import in_notebook

        if in_notebook():
            from ablations.running.live import run_live

            return run_live(self, workers=workers, launcher=launcher)
        return run_study(self, workers=workers, launcher=launcher)

    def stop(self) -> bool:
        """End the process that a notebook's `run` started, resumably; False where there is none."""
        from ablations.running.attach import find

        runner = find(self.folder)
        if runner is not None:
            runner.stop()
        return runner is not None

    def results(self) -> Results:
        """What its trials have stored: one row per arm and seed."""
        return results_of(self)

    def verdict(self) -> str:
        """What its stored results say, in sentences; that there is no verdict where trials are missing."""
        from ablations.reporting.findings import Findings
        from ablations.reporting.summary import said
        from ablations.reporting.words import text_of

        lines = said(Findings(study=text_of(self), results=self.results()))
        return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)

    def with_arm(self, name: str, overrides: Sequence[str], about: str | None = None) -> "StudyHandle":
        """Return this study with one more arm, stored beside the others; trials that are finished are not run again.

        Raises ConfigError for a name that is taken, for a grid, and for whatever a study's file would be refused for.
        """
        if self.file.grid is not None:
            raise ConfigError("arms", name, f"no arm of its own: the arms of {self.name} are a grid")
        if name in self.arms:
            raise ConfigError("arms", name, f"a new name; {self.name} has {', '.join(self.arms)}")
        node = copy.deepcopy(self.node) | {"name": self.name}
        node["arms"][name] = {"about": about or " ".join(overrides), "overrides": list(overrides)}
        return StudyHandle(node, self.scale, self.asked, self.overrides)

    def __repr__(self) -> str:
        return f"study {self.name} at scale {self.scale}: {len(self.arms)} arms x {len(self.seeds)} seeds"

    def _repr_html_(self) -> str:
        table = self.accounting()[SHOWN].to_html(index=False, border=0)
        return f"<p><b>{html.escape(repr(self))}</b><br>{html.escape(self.file.question)}</p>{table}"


def study(
    name: str | Mapping[str, Any],
    scale: str = "smoke",
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> StudyHandle:
    """Load a study at a scale: `configs/sweep/<name>.yaml`, the YAML file at the path `name`, or a dictionary.

    A dictionary holds what a file would, and its `name`. ConfigError (a ValueError) names what is wrong with it.
    """
    return StudyHandle(name, scale, seeds, overrides)


def run_study(study: Study, *, workers: int | None, launcher: str, console: "Console | None" = None) -> bool:
    """Run every unfinished trial, then write the report and print the verdicts. True if all trials finished.

    A failing trial does not stop the others. On Ctrl-C the workers are ended, what they saved stays, and
    KeyboardInterrupt goes on to the caller.
    """
    from ablations.reporting.write import report_study
    from ablations.running.runner import run_trials
    from dsv2.report.terminal import open_console

    console = console or open_console()
    finished = run_trials(study, workers=workers, launcher=launcher, console=console)
    report_study(study, console)
    return finished
