"""The benchmarks of DeepSeek-V2's report that lm-evaluation-harness has (extra `eval`), with their data in a folder.

HumanEval is not among them: its answers are programs, which have to be run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsv2.config import ConfigBase, setting
from dsv2.data.packing import PackedText
from dsv2.evaluation.benchmarks import Measured
from dsv2.inference.reader import Reader
from dsv2.models.transformer import Transformer
from dsv2.printing import described

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"  # those that the harness lacks
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}  # of files -> what reads them
OPTION = re.compile(r"^\([A-Z]\)", flags=re.M)  # how BBH lists answers
FEW = 5  # different answers that are options even if they are not listed, such as yes and no


class Exam(NamedTuple):
    """A benchmark as the report has it."""

    task: str  # of the harness
    shots: int | None  # examples before each question; None: those that the task has


EXAMS = {  # DeepSeek-V2, Table 2
    "mmlu": Exam("mmlu", 5),
    "bbh": Exam("bbh_cot_fewshot", None),  # 3
    "math": Exam("hendrycks_math", 4),
    "ceval": Exam("ceval-valid", 5),
    "cmmlu": Exam("cmmlu", 5),
    "cmrc": Exam("cmrc", 1),
}


class Graded(NamedTuple):
    """One score of a task or of a group of tasks."""

    task: str
    metric: str
    value: float
    stderr: float | None
    chance: float | None  # what guessing among the options gives; 0 for free answers; None for other metrics


def open_tasks(include_path: Path | None = None) -> "TaskManager":
    """Return the harness's tasks, ours, and those in a folder of the user's."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[str(path) for path in (TASKS, include_path) if path is not None])


def grade(
    harness: Any, manager: "TaskManager", task: str, *, data_dir: Path | None = None, limit: int | None = None
) -> list[Graded]:
    """Evaluate one of EXAMS, or a task of the harness. Raises ValueError if its data cannot be loaded."""
    from lm_eval.evaluator import evaluate

    exam = EXAMS.get(task, Exam(task, None))
    try:
        with _data_from(data_dir):
            loaded = manager.load([exam.task])
    except Exception as error:  # of the hub, the network, a file or a loader
        valid = "" if data_dir is not None or task not in EXAMS else "; --data-dir names a folder with its data"
        raise ValueError(f"cannot be loaded; {described(error)}{valid}") from error
    tasks: dict[str, ConfigurableTask] = loaded["tasks"]
    for each in tasks.values():
        if exam.shots is not None:
            each.set_config(key="num_fewshot", value=exam.shots)
    results = evaluate(harness, loaded, limit=limit, bootstrap_iters=1000, log_samples=False)
    assert results is not None  # this process is the only one
    chances = {name: chance_of(each) for name, each in tasks.items()}
    sizes = {name: len(_documents(each)) for name, each in tasks.items()}
    for name, group in loaded["groups"].items():
        below = [each.task_name for each in group.get_all_tasks()]
        chances[name] = sum(chances[each] * sizes[each] for each in below) / max(sum(sizes[each] for each in below), 1)
    return [score for name, numbers in results["results"].items() for score in _scores(name, numbers, chances)]


def headline(scores: Sequence[Graded], task: str) -> float:
    """Return the score of an exam that the report has: of the whole, accuracy or exact match."""
    whole = [score for score in scores if score.task == EXAMS[task].task]
    return next(score.value for score in whole if score.metric.partition(" ")[0] in ("acc", "exact_match"))


def chance_of(task: "ConfigurableTask") -> float:
    """Return what guessing gets right: one of a question's options, or of a few answers of the whole task."""
    documents = _documents(task)
    if not len(documents):
        return 0.0
    if task.OUTPUT_TYPE == "multiple_choice":
        return sum(1 / len(task.doc_to_choice(document)) for document in documents) / len(documents)
    options = [len(set(OPTION.findall(str(task.doc_to_text(document))))) for document in documents]
    if all(options):
        return sum(1 / number for number in options) / len(options)
    answers = {str(task.doc_to_target(document)) for document in documents}
    return 1 / len(answers) if len(answers) <= FEW < len(documents) else 0.0


def _documents(task: "ConfigurableTask") -> Any:
    return task.test_docs() if task.has_test_docs() else task.validation_docs()


def _scores(task: str, numbers: Mapping[str, Any], chances: Mapping[str, float]) -> Iterator[Graded]:
    """Parse results of the harness, which are named `metric,filter` and `metric_stderr,filter`."""
    for name, value in numbers.items():
        metric, comma, filter_name = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            stderr = numbers.get(f"{metric}_stderr,{filter_name}")
            label = metric if filter_name == "none" else f"{metric} ({filter_name})"
            guess = chances.get(task) if metric in ("acc", "acc_norm", "exact_match") else None
            yield Graded(task, label, float(value), stderr if isinstance(stderr, float) else None, guess)


# ---- data in a folder ------------------------------------------------------------------------------------------------


@contextmanager
def _data_from(data_dir: Path | None) -> Iterator[None]:
    """Let tasks read their data sets from the folder of this name in `data_dir`, instead of the Hugging Face Hub."""
    if data_dir is None:
        yield
        return
    from lm_eval.api.task import ConfigurableTask

    def download(task: ConfigurableTask, dataset_kwargs: Any = None, **_: Any) -> None:
        task.dataset = load_folder(data_dir, str(task.DATASET_PATH), task.DATASET_NAME)

    original = ConfigurableTask.download
    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = original


def load_folder(data_dir: Path, path: str, config: str | None) -> Any:
    """Load the data set `path`, as in cais/mmlu, from `data_dir/cais/mmlu` or `data_dir/mmlu`.

    A folder as on the hub, with a README, is read as it says. In another, files in the folder of `config`, if there is
    one, are Parquet, JSON or CSV; the split is what their names begin with, up to a dot or hyphen, as in
    test-00000-of-00001.parquet. Raises ValueError if there are none.
    """
    import datasets

    places = [data_dir / path, data_dir / path.rpartition("/")[2]]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ValueError(f"--data-dir {data_dir}: has no folder {path}, nor {places[1].name}")
    if (folder / "README.md").is_file():
        return datasets.load_dataset(str(folder), config)
    at = folder / config if config and (folder / config).is_dir() else folder
    splits: dict[str, list[str]] = {}
    for file in sorted(file for file in at.iterdir() if file.suffix in FORMATS):
        splits.setdefault(re.split(r"[-.]", file.name)[0], []).append(str(file))
    kinds = {FORMATS[Path(file).suffix] for files in splits.values() for file in files}
    if len(kinds) != 1:
        raise ValueError(f"--data-dir {data_dir}: {at} needs files of one kind, such as test.parquet or dev.jsonl")
    return datasets.load_dataset(kinds.pop(), data_files=splits)


# ---- at the end of a run ---------------------------------------------------------------------------------------------


class Exams:
    """Exams of a model at the end of its training."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        tasks: tuple[str, ...] = ("mmlu", "cmmlu")
        data_dir: str | None = setting(None)  # a folder with the data; see `load_folder`
        limit: int | None = None  # questions of each task; null: all

        def __post_init__(self) -> None:
            self.require(bool(self.tasks) and set(self.tasks) <= set(EXAMS), "tasks", f"some of {', '.join(EXAMS)}")
            self.require(bool(self.data_dir), "data_dir", "name a folder with the data sets")
            self.require(self.limit is None or self.limit > 0, "limit", "positive, or null for all questions")

        def build(self, source: PackedText) -> "Exams":
            """Load the harness now, so that what is missing fails before training. Raises ConfigError."""
            assert self.data_dir is not None
            self.require(Path(self.data_dir).expanduser().is_dir(), "data_dir", "a folder")
            return Exams(self, source)

    def __init__(self, config: Config, source: PackedText) -> None:
        self.config, self.source, self.manager = config, source, open_tasks()

    def run(self, model: Transformer, *, batch_tokens: int) -> Measured:
        """Return `bench/<exam>` of each; one that fails does not take the others along."""
        from dsv2.evaluation.harness import Harness

        length, scores, failed = self.source.sequence_length, dict[str, float](), dict[str, str]()
        reader = Reader(model, self.source.store.tokenizer, length)
        harness = Harness(reader, batch_size=max(batch_tokens // length, 1))
        data_dir = Path(str(self.config.data_dir)).expanduser()
        for task in self.config.tasks:
            try:
                graded = grade(harness, self.manager, task, data_dir=data_dir, limit=self.config.limit)
                scores[f"bench/{task}"] = headline(graded, task)
            except Exception as error:  # the training, and the other exams, do not depend on it
                failed[task] = described(error)
        return Measured(scores, failed)
