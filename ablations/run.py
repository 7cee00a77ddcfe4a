"""`python -m ablations.run sweep=NAME [scale=...] [seeds=[...]] [workers=N] [launcher=...] [dry_run=true] [overrides]`.

Runs a study: prints its arms and their cost, trains unfinished trials and writes the report. Any other argument is an
override of every trial, as in `optim.lr=1e-3`.

sweep       a study's name, or the path of its YAML file
scale       size of models and budgets, smoke by default; several, as in [smoke,tiny], form a ladder
seeds       a list, as in [0,1]; by default those of the scale, and as many as the study needs
workers     trials at a time; by default one per core, or one if there is a GPU; 64 with slurm and ray
launcher    local (default), slurm or ray
dry_run     true: print arms, overrides and what they will take, and run nothing
hardware    of a dry run: here (default), h100, a100 or laptop
price       of a dry run: what a device costs per hour
plan        true: print which of the scales answers each contrast at the least compute, from stored runs
until_decided   true: train no more seeds once every contrast is decided
mixed_kernels   true: give verdicts although trials were computed with different kernels
report.formats  files of the report's figures, as in [png,svg,pdf]; a PNG of 200 dpi by default
"""

import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from ablations.request import parse, usage
from ablations.running import STOPPED
from dsv2.config import ConfigError
from dsv2.printing import complain, refuse
from dsv2.storage.locks import Busy

if TYPE_CHECKING:  # every worker imports this module again, before its signal handling is set up
    from rich.console import Console

    from ablations.trials.trials import Study


def show(study: "Study", console: "Console") -> None:
    """Print the question, the arms and their accounting."""
    from ablations.reporting.adjusted import change_text
    from ablations.reporting.amounts import large
    from ablations.reporting.words import about
    from dsv2.metrics import BUDGETS, quantity
    from dsv2.report.terminal import add_row, open_table

    console.rule(f"{study.name} at scale {study.scale}")
    console.print(study.file.question)
    console.print(f"Prediction: {study.file.prediction}")
    console.print(f"Held equal: {', '.join(quantity(budget).name for budget in study.file.equal) or 'nothing'}")
    table = open_table(["arm", *(quantity(budget).name for budget in BUDGETS), "steps", "seeds", "mismatch"])
    for row in study.budgets():
        mark = " (baseline)" if row["arm"] == study.baseline_of(row["arm"]) else ""
        amounts = [large(row[name], digits=4) for name in (*BUDGETS, "steps", "seeds")]
        add_row(table, [f"{row['arm']}{mark}", *amounts, f"{row['mismatch']:.2%}" if row["mismatch"] else "0"])
    console.print(table)
    for name, arm in study.arms.items():
        solved = ", ".join(map(change_text, study.adjusted[name].items()))
        console.print(f"{name}: {about(arm)}" + (f"; adjusted to equal budgets: {solved}" if solved else ""))
    if study.untuned is not None:
        console.print(f"The learning rates are those of the scale until they are known: {study.untuned.valid}")
    elif study.curves:
        rates = ", ".join(f"{name} {curve.best:g}" for name, curve in study.curves.items())
        console.print(f"Learning rates, the best in {study.file.lr_from}: {rates}")
    for name, probe in study.probes.items():
        console.print(f"Every arm is also trained on {name}: {probe.about}")


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which stops a study as Ctrl-C does."""


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status: 0 if every trial finished, 2 for an invalid request, else 1.

    130 after Ctrl-C, 143 after SIGTERM.
    """
    if any(word in ("-h", "--help") for word in arguments):
        print(usage(__doc__))
        return 0
    try:
        return _main(arguments)
    except Busy as error:
        complain(f"error: {error}")
        return 1
    except (ConfigError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt as stop:
        complain(STOPPED)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _main(arguments: list[str]) -> int:
    request, overrides = parse(arguments)
    from ablations.trials.trials import Study
    from dsv2.report.terminal import open_console
    from dsv2.storage.checkpoints import require_no_pickles

    try:
        require_no_pickles()
    except ValueError as error:
        return refuse(error)
    console = open_console()
    studies = [Study(request.sweep, scale, request.seeds, overrides) for scale in request.scales]
    for study in studies:
        study.mixed_kernels, study.formats = request.mixed_kernels, request.report.formats
    if request.dry_run:
        from ablations.reporting.before import print_outlook
        from ablations.running.launch import default_workers
        from ablations.trials.outlook import outlook

        for study in studies:
            show(study, console)
            words(study, console)
            print_outlook(
                outlook(study, request.hardware, request.workers or default_workers()), request.price, console
            )
        return 0
    if request.plan:
        from ablations.reporting.decisions import print_plan

        try:
            print_plan(studies, console)
        except ValueError as error:
            return refuse(error)
        return 0
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)
    from ablations.studies import run_study

    finished = True
    for study in studies:
        show(study, console)
        finished &= run_study(
            study,
            workers=request.workers,
            launcher=request.launcher,
            until_decided=request.until_decided,
            console=console,
        )
    if len(studies) > 1:
        from ablations.reporting.ladder import report_ladder
        from ablations.running.runner import with_space

        with_space(lambda: report_ladder(studies, console), console)
    return 0 if finished else 1


def words(study: "Study", console: "Console") -> None:
    """Print the overrides of every arm as words of a shell, including the solver's changes."""
    for name, arm in study.arms.items():
        solved = [f"model.{key}={value}" for key, value in study.changes[name].items()]
        console.print(f"{name}: {shlex.join((*arm.overrides, *solved))}", soft_wrap=True)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def _leave(number: int, frame: Any) -> None:
    """Exit at once while there is nothing to clean up; an exception raised inside an import might be swallowed."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(main(sys.argv[1:]))
