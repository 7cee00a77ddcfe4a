"""Published benchmarks: their data from a folder, their chance levels, and at the end of a run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dsv2
from dsv2.config import ConfigError
from dsv2.evaluation.exams import EXAMS, Exams, Graded, chance_of, grade, headline, load_folder, open_tasks

pytest.importorskip("lm_eval")
SUBJECTS = ("anatomy", "virology")
TASK = """
task: tiny_{name}
dataset_path: cais/mmlu
dataset_name: {name}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GROUP = """
group: tiny
task: [tiny_anatomy, tiny_virology]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """MMLU with two subjects, of 3 questions with 4 options and of 1 with 2, and CMRC with 2 questions."""
    for name, options, count in (("anatomy", 4, 3), ("virology", 2, 1)):
        folder = tmp_path / "data" / "mmlu" / name
        folder.mkdir(parents=True)
        row = {"question": "Which", "choices": ["a", "b", "c", "d"][:options], "answer": 0, "subject": name}
        for split, rows in (("test", count), ("dev", 5)):
            (folder / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n" * rows)
    folder = tmp_path / "data" / "hfl" / "cmrc2018"
    folder.mkdir(parents=True)
    row = {
        "context": "书在桌上。",
        "question": "书在哪？",
        "answers": {"text": ["桌上", "在桌上"], "answer_start": [2, 1]},
    }
    for split in ("train", "validation"):
        (folder / f"{split}-00000-of-00001.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All tasks, and a group of two of our own; reading thousands of files takes seconds."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in SUBJECTS:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name))
    (folder / "group.yaml").write_text(GROUP)
    return open_tasks(folder)


class Answers:
    """Stands for the harness's model: the first option is likeliest; it writes one answer to everything."""

    rank, world_size = 0, 1
    tokenizer_name, chat_template = "", None

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return [(-float(ord(request.args[1].strip()[0])), False) for request in requests]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        self.seen = [request.args[0] for request in requests]
        return ["在桌上"] * len(requests)


def test_data_are_read_from_a_folder_and_chance_is_weighted(manager: Any, data_dir: Path) -> None:
    scores = grade(Answers(), manager, "tiny", data_dir=data_dir)
    by_task = {score.task: score for score in scores if score.metric == "acc"}
    assert {task: score.chance for task, score in by_task.items()} == {
        "tiny_anatomy": 0.25,
        "tiny_virology": 0.5,
        "tiny": pytest.approx((3 * 0.25 + 0.5) / 4),
    }
    assert by_task["tiny"].value == 1.0


def test_cmrc_takes_any_of_its_answers_after_one_example(manager: Any, data_dir: Path) -> None:
    answers = Answers()
    scores = grade(answers, manager, "cmrc", data_dir=data_dir)
    assert [(score.task, score.metric, score.value, score.chance) for score in scores] == [
        ("cmrc", "exact_match", 1.0, 0.0)
    ]
    assert all(text.count("答案：") == 2 for text in answers.seen)
    assert headline(scores, "cmrc") == 1.0


def test_every_exam_is_a_task(manager: Any) -> None:
    assert all(exam.task in manager.all_tasks for exam in EXAMS.values())


def test_what_is_missing_is_named(manager: Any, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be loaded; ValueError: --data-dir .*: has no folder .*cmmlu"):
        grade(Answers(), manager, "cmmlu", data_dir=data_dir)
    (tmp_path / "empty" / "mmlu").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"needs files of one kind, such as test\.parquet"):
        load_folder(tmp_path / "empty", "cais/mmlu", "anatomy")


@pytest.mark.parametrize(
    ("texts", "targets", "chance"),
    [
        (["Options:\n(A) x\n(B) y\n(C) z", "(A) x\n(B) y"], ["(A)", "(B)"], (1 / 3 + 1 / 2) / 2),
        ([""] * 8, ["yes", "no"] * 4, 1 / 2),
        ([""] * 8, list("abcdefgh"), 0.0),
        ([], [], 0.0),
    ],
)
def test_chance_of_written_answers(texts: list[str], targets: list[str], chance: float) -> None:
    documents = list(zip(texts, targets, strict=True))
    task: Any = SimpleNamespace(
        OUTPUT_TYPE="generate_until",
        has_test_docs=lambda: True,
        test_docs=lambda: documents,
        doc_to_text=lambda document: document[0],
        doc_to_target=lambda document: document[1],
    )
    assert chance_of(task) == pytest.approx(chance)


def test_a_run_measures_them_at_its_end(
    manager: Any, quick: list[str], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv2.evaluation.exams.open_tasks", lambda: manager)
    words = [*quick, "benchmarks=exams", f"benchmarks.data_dir={data_dir}", "benchmarks.tasks=[cmrc,cmmlu]"]
    run = dsv2.load(words)
    assert isinstance(run.benchmarks, Exams.Config)
    source = run.data.open(sequence_length=32, seed=0, validation_tokens=64)
    measured = run.benchmarks.build(source).run(run.model.build(), batch_tokens=64)
    assert measured.scores == {"bench/cmrc": 0.0}
    assert list(measured.failed) == ["cmmlu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmarks.data_dir=/tmp", "benchmarks.tasks=[chess]"], "benchmarks.tasks=.* some of mmlu, bbh"),
        ([], "benchmarks.data_dir=None is not valid: name a folder"),
        (["benchmarks.data_dir=/tmp", "benchmarks.limit=0"], "benchmarks.limit=0"),
    ],
)
def test_impossible_settings_are_refused(quick: list[str], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*quick, "benchmarks=exams", *words])


def test_the_headline_is_of_the_whole() -> None:
    scores = [Graded("mmlu_stem", "acc", 0.1, None, 0.25), Graded("mmlu", "acc", 0.3, None, 0.25)]
    assert headline(scores, "mmlu") == 0.3
