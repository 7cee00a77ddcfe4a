"""`python -m dsv2 eval RUN --tasks ...`: own benchmarks, and tasks of lm-evaluation-harness."""

import importlib.util
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from dsv2.data.packing import PackedText
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.metrics import chance
from dsv2.storage.files import write_json
from dsv2.training.saved import load_config, load_model, load_run

OWN = ("cloze", "copying", "arithmetic")


class Score(NamedTuple):
    task: str
    metric: str
    value: float
    stderr: float | None
    chance: float | None


def evaluate_run(
    folder: Path, tasks: list[str], *, include_path: Path | None, limit: int | None, batch_size: int
) -> list[Score]:
    """Scores of the model in a run directory. Raises ValueError for tasks that are not there or cannot be loaded."""
    for name, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: 1 or more")
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include-path {include_path}: no such folder")
    asked = [task for task in dict.fromkeys(tasks) if task]
    if not asked:
        raise ValueError(f"--tasks: name some, as in --tasks {','.join(OWN[:2])}")
    foreign = [task for task in asked if task not in OWN]
    found = {task: _own(folder, task, batch_size) for task in asked if task in OWN}
    if foreign:
        found |= _harness(folder, foreign, include_path, limit, batch_size)
    return [score for task in found for score in found[task]]


def _own(folder: Path, task: str, batch_size: int) -> list[Score]:
    """One of our benchmarks, with the run's sizes or, where it has none, the default ones."""
    if "data" not in load_config(folder):
        raise ValueError(f"{task}: asks about a run's own held-out text, and {folder} is an imported model without any")
    run = load_run(folder)
    run = replace(run, benchmarks=run.benchmarks or TextBenchmarks.Config())  # raises ConfigError where they do not fit
    assert run.benchmarks is not None
    length = run.trainer.sequence_length
    source = run.data.open(sequence_length=length, seed=0, validation_tokens=run.trainer.validation_tokens)
    assert isinstance(source, PackedText)
    benchmarks = run.benchmarks.build(source)
    if task == "arithmetic" and not benchmarks.exercises:
        raise ValueError(f"{task}: this run's corpus has no domain maths, only {', '.join(source.domains)}")
    measure = {
        "cloze": benchmarks.run_cloze,
        "copying": benchmarks.run_copying,
        "arithmetic": benchmarks.run_arithmetic,
    }[task]
    found = measure(load_model(folder), batch_tokens=batch_size * length)
    return [Score(task, name, value, None, chance(name)) for name, value in found.items()]


def _harness(
    folder: Path, tasks: list[str], include_path: Path | None, limit: int | None, batch_size: int
) -> dict[str, list[Score]]:
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            f"{tasks[0]}: needs lm-evaluation-harness: pip install 'dsv2[eval]'; without: {', '.join(OWN)}"
        )
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from dsv2.evaluation.harness import Harness
    from dsv2.inference.reader import open_reader

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    for task in tasks:
        if task not in manager.all_tasks and not Path(task).is_file():
            close = get_close_matches(task, [*OWN, *manager.all_tasks], n=3)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise ValueError(f"{task}: no such task; {hint}tasks of your own are found with --include-path FOLDER")
    harness = Harness(open_reader(folder), batch_size=batch_size)
    try:
        loaded = manager.load(tasks)
    except Exception as error:  # whatever the hub, the network, a task's file or a loader raises
        first = str(error).partition("\n")[0]
        raise ValueError(f"{', '.join(tasks)}: cannot be loaded; {type(error).__name__}: {first}") from error
    results = evaluate(harness, loaded, limit=limit, bootstrap_iters=1000, log_samples=False)
    assert results is not None  # this process is the only one
    return {task: _scores(task, numbers) for task, numbers in results["results"].items()}


def _scores(task: str, numbers: dict[str, Any]) -> list[Score]:
    """The harness names a value `metric,filter` and its standard error `metric_stderr,filter`."""
    scores = []
    for name, value in numbers.items():
        metric, comma, chosen = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            stderr = numbers.get(f"{metric}_stderr,{chosen}")
            shown = metric if chosen == "none" else f"{metric} ({chosen})"
            scores.append(Score(task, shown, float(value), stderr if isinstance(stderr, float) else None, None))
    return scores


def show(scores: list[Score]) -> None:
    """A table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("value", "standard error", "chance"):
        table.add_column(column, justify="right")
    for task, metric, *numbers in scores:
        table.add_row(task, metric, *("" if number is None else f"{number:.4f}" for number in numbers))
    Console().print(table)


def write(path: Path, folder: Path, scores: list[Score]) -> None:
    """The same as JSON, replaced at once."""
    write_json(path, {"run": str(folder), "scores": [score._asdict() for score in scores]})
