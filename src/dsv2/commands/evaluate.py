"""`python -m dsv2 eval RUN --tasks ...`: evaluate on our benchmarks and on tasks of lm-evaluation-harness."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dsv2.commands.deployment import tell_of_cache
from dsv2.config import ConfigError
from dsv2.data.chats import Chats
from dsv2.data.packing import PackedText
from dsv2.evaluation.benchmarks import TASKS, TextBenchmarks
from dsv2.evaluation.code import human_eval, measure_code
from dsv2.evaluation.following import Following
from dsv2.evaluation.needle import MULTIPLES, NeedleGrid
from dsv2.evaluation.verifiers import Judge
from dsv2.inference.deployed import Deployed
from dsv2.inference.replies import reply_to
from dsv2.inference.sampling import Sampling
from dsv2.metrics import chance
from dsv2.printing import described, warn
from dsv2.report.pictures import picture
from dsv2.report.terminal import add_row, open_console, open_table
from dsv2.storage.files import replacing, write_json
from dsv2.training.saved import SavedRun, open_run

NEEDLE, FOLLOWING, HUMANEVAL = "needle", "following", "humaneval"
OWN = (*TASKS, NEEDLE, FOLLOWING, HUMANEVAL)
LONGEST_CODE = 256  # tokens of a completion, as far as the model has room for them


class Score(NamedTuple):
    task: str
    metric: str
    value: float
    stderr: float | None
    chance: float | None


def evaluate_run(
    run: str | Path,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    text: Sequence[str] = (),
    deployment: Deployed.Config | None = None,
    device: str = "cpu",
    lengths: Sequence[int] = (),
    figure: Path | None = None,
) -> tuple[list[Score], list[str]]:
    """Return the scores of a run's model, and a sentence about each task that failed, which stderr has too.

    `text` selects other held-out text than the run's own for our benchmarks; `deployment` and `device` say how and
    where the model is deployed (see `open_run`). Tasks of the harness read their data from `data_dir`, if it is given.
    `lengths` are the tokens of the task `needle`, whose heat map is drawn
    to `figure`.
    Raises ValueError, before anything is measured, for tasks that do not exist or do not fit, and if none has scores.
    """
    for name, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and not 1 <= value < 2**31:
            raise ValueError(f"{name} {value}: must be at least 1 and less than 2**31")
    for name, folder in (("--include-path", include_path), ("--data-dir", data_dir)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{name} {folder}: no such folder")
    requested = [task for task in dict.fromkeys(tasks) if task]
    if not requested:
        raise ValueError(f"--tasks: name at least one, as in --tasks {','.join(TASKS[:2])}")
    for option, given in (("--lengths", lengths), ("--figure", figure)):
        if given and NEEDLE not in requested:
            raise ValueError(f"{option}: only for --tasks {NEEDLE}")
    opened = open_run(run, device=device, text=text, deployment=deployment)
    measures = _own(opened, [task for task in requested if task in TASKS], batch_size)
    if NEEDLE in requested:
        measures[NEEDLE] = _needle(opened, lengths, figure, batch_size)
    if FOLLOWING in requested:
        measures[FOLLOWING] = _following(opened)
    if HUMANEVAL in requested:
        measures[HUMANEVAL] = _humaneval(opened, limit)
    if foreign := [task for task in requested if task not in OWN]:
        measures |= _harness(opened, foreign, include_path, data_dir, limit, batch_size)
    tell_of_cache(opened.model_config, opened.deployment)
    scores, failed = list[Score](), list[str]()
    for task, measure in measures.items():
        try:
            scores += measure()
        except Exception as error:  # of the hub, the network, a task file, a loader or a metric
            failed.append(
                f"{task}: {error}".replace("\n", " ")
                if isinstance(error, ValueError)
                else f"{task}: failed; {described(error)}"
            )
    if failed and not scores:
        raise ValueError("; ".join(failed))
    for problem in failed:
        warn(problem)
    return scores, failed


Measure = Callable[[], list[Score]]


def _own(run: SavedRun, tasks: list[str], batch_size: int) -> dict[str, Measure]:
    """Prepare our benchmarks, with the run's sizes or, if it has none, the defaults."""
    if not tasks:
        return {}
    own = None if run.imported else run.config.benchmarks
    config = own if isinstance(own, TextBenchmarks.Config) else TextBenchmarks.Config()
    source = _text_of(run, tasks)
    length = source.sequence_length
    for field, tokens in config.lengths().items():
        if tokens > length and field.partition("_")[0] in tasks:
            value, valid = getattr(config, field), f"{tokens} tokens per question, at most {length} as in training"
            raise ConfigError(f"benchmarks.{field}", value, valid)
    benchmarks = config.build(source, tasks)
    if "arithmetic" in tasks and not benchmarks.exercises:
        raise ValueError(f"arithmetic: the text has no domain 'maths', only {', '.join(source.domains)}")
    runs = dict(zip(TASKS, (benchmarks.run_cloze, benchmarks.run_copying, benchmarks.run_arithmetic), strict=True))

    def measure(task: str) -> list[Score]:
        values = runs[task](run.model, batch_tokens=batch_size * length)
        return [Score(task, name, value, None, chance(name)) for name, value in values.items()]

    return {task: partial(measure, task) for task in tasks}


def _text_of(run: SavedRun, tasks: Sequence[str]) -> PackedText:
    """Return the text that questions are cut from. Raises ValueError if the run's data are not text."""
    if not isinstance(run.source, PackedText):
        raise ValueError(f"{', '.join(tasks)}: needs held-out text, but the data of {run.folder} are not text")
    return run.source


def _needle(run: SavedRun, lengths: Sequence[int], figure: Path | None, batch_size: int) -> Measure:
    """Prepare needles in held-out text, of `lengths` or those of the run's benchmark.

    Without either, texts are 1 to 16 times as long as in training, or 1/16 to all of an imported model's context.
    """
    source, own = _text_of(run, [NEEDLE]), None if run.imported else run.config.benchmarks
    config = own if isinstance(own, NeedleGrid.Config) else NeedleGrid.Config(trained_length=run.longest)
    if run.imported and not lengths:
        lengths = [run.longest // multiple for multiple in reversed(MULTIPLES)]
    if lengths:
        grid = NeedleGrid(source, lengths, depths=config.depths, questions=config.questions)
    else:
        limit = run.model_config.rope.limit or config.longest
        within = tuple(multiple for multiple in config.multiples if multiple * config.trained_length <= limit)
        grid = replace(config, multiples=within or config.multiples).build(source)

    def measure() -> list[Score]:
        table = grid.measure(run.model, batch_tokens=batch_size * run.longest)
        if figure is not None:
            from dsv2.plots.needle import needle_heatmap  # imports matplotlib

            with replacing(figure) as scratch:
                scratch.write_bytes(picture(NEEDLE, "", needle_heatmap(table)).png)
        return [Score(NEEDLE, name, *score, chance(name)) for name, score in grid.scores(table).items()]

    return measure


def _following(run: SavedRun) -> Measure:
    """Prepare the held-out instructions of a run's data, with the run's sizes or, if it has none, the defaults."""
    if not isinstance(run.source, Chats):
        valid = "needs conversations, such as --text data=instructions"
        raise ValueError(f"{FOLLOWING}: {valid}; the data of {run.folder} are none")
    own = None if run.imported else run.config.benchmarks
    benchmark = (own if isinstance(own, Following.Config) else Following.Config()).build(run.source)

    def measure() -> list[Score]:
        with Judge() as judge:
            scores = benchmark.measure(run.model, judge)
        return [Score(FOLLOWING, name, value, None, chance(name)) for name, value in scores.items()]

    return measure


def _humaneval(run: SavedRun, limit: int | None) -> Measure:
    """Prepare the problems of HumanEval, or the first `limit` of them, each completed once without drawing."""
    problems = human_eval()[:limit]
    tokenizer = run.tokenizer
    prompts = [[*tokenizer.prefix, *tokenizer.encode(problem.prompt)] for problem in problems]
    room = run.longest - max(map(len, prompts))
    if room < 1:
        longest = run.longest - room
        raise ValueError(f"{HUMANEVAL}: its longest prompt has {longest} tokens, and the model reads {run.longest}")

    def measure() -> list[Score]:
        replies = reply_to(
            run.model,
            tokenizer,
            prompts,
            samples=1,
            sampling=Sampling(temperature=0.0),
            max_new_tokens=min(LONGEST_CODE, room),
            stop_ids={tokenizer.end_id},
        )
        with Judge() as judge:
            found, _ = measure_code(judge, problems, [[reply.text for reply in group] for group in replies])
        scores = [Score(HUMANEVAL, "bench/humaneval", found.pass_at[1], None, None)]
        return (
            [*scores, Score(HUMANEVAL, "bench/unjudged", float(found.unjudged), None, None)]
            if found.unjudged
            else scores
        )

    return measure


def _harness(
    run: SavedRun,
    tasks: list[str],
    include_path: Path | None,
    data_dir: Path | None,
    limit: int | None,
    batch_size: int,
) -> dict[str, Measure]:
    """Prepare tasks of lm-evaluation-harness. Raises ValueError for a task that does not exist."""
    if importlib.util.find_spec("lm_eval") is None:
        without = f"available without it: {', '.join(OWN)}"
        raise ValueError(f"{tasks[0]}: needs lm-evaluation-harness: pip install 'dsv2[eval]'; {without}")
    from dsv2.evaluation.exams import EXAMS, grade, open_tasks
    from dsv2.evaluation.harness import Harness

    manager = open_tasks(include_path)
    for task in tasks:
        if task not in EXAMS and task not in manager.all_tasks and not Path(task).is_file():
            close = get_close_matches(task, [*OWN, *EXAMS, *manager.all_tasks], n=3)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise ValueError(f"{task}: no such task; {hint}use --include-path FOLDER for your own tasks")
    harness = Harness(run.reader, batch_size=batch_size)

    def measure(task: str) -> list[Score]:
        return [Score(*score) for score in grade(harness, manager, task, data_dir=data_dir, limit=limit)]

    return {task: partial(measure, task) for task in tasks}


def show(scores: list[Score]) -> None:
    """Print the scores as a table."""
    table = open_table(["task", "metric", "value", "standard error", "chance"], text=["metric"])
    for task, metric, *numbers in scores:
        add_row(table, [task, metric, *("" if number is None else f"{number:.4f}" for number in numbers)])
    open_console().print(table)


def require_writable(path: Path, option: str) -> None:
    """Raise ValueError unless a file can be written to `path`, which was given by `option`."""
    if path.is_dir():
        raise ValueError(f"{option} {path}: a folder, not a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: no folder {path.parent}")


def write(path: Path, run: str, scores: list[Score]) -> None:
    """Write the scores as JSON, atomically."""
    write_json(path, {"run": run, "scores": [score._asdict() for score in scores]})
