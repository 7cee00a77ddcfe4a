"""`python -m dsv2 eval`: the scores of our benchmarks and of the harness' tasks, or one clear line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dsv2
from dsv2.__main__ import main
from dsv2.commands.evaluate import Score, evaluate_run, show
from dsv2.data.maths import worksheets
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.training import fit
from dsv2.training.saved import open_run
from tests.references.commands import refusal
from tests.references.likelihood import looped
from tests.references.runs import without_checksums
from tests.references.tolerances import FLOAT32_MODULE

# ---- our benchmarks --------------------------------------------------------------------------------------------------


def test_scores_are_those_of_training(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the run's own sizes, shown as a table and written as JSON."""
    out = tmp_path / "scores.json"
    assert main(["eval", str(trained), "--tasks", "cloze,copying", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["run"] == str(trained)
    scores = {row["metric"]: row for row in written["scores"]}
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert scores.keys() == {name for name in metrics if name.startswith("bench/")}
    for name, row in scores.items():
        assert row["value"] == pytest.approx(metrics[name], rel=FLOAT32_MODULE, abs=1e-9)
        assert row["task"] == re.match(r"bench/([a-z]+)", name)[1]
        assert row["stderr"] is None
    assert scores["bench/cloze"]["chance"] == 0.25
    assert scores["bench/cloze_margin"]["chance"] is None
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["task", "metric", "value", "standard", "error", "chance"]
    shown = [line.split() for line in table if "bench/" in line]
    assert [(words[1], words[2]) for words in shown] == [(name, f"{row['value']:.4f}") for name, row in scores.items()]


def test_a_task_is_measured_once_and_the_batch_changes_nothing(trained: Path) -> None:
    once = evaluate_run(trained, ["cloze"])[0]
    assert {score.task for score in once} == {"cloze"}
    for same in (evaluate_run(trained, ["cloze", "", "cloze"])[0], evaluate_run(trained, ["cloze"], batch_size=1)[0]):
        assert [score.metric for score in same] == [score.metric for score in once]
        assert [score.value for score in same] == pytest.approx([score.value for score in once], rel=FLOAT32_MODULE)


def test_the_batch_is_as_large_as_asked_for(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(TextBenchmarks, "run_cloze", lambda *_, batch_tokens: sizes.append(batch_tokens) or {})
    for size in ([], ["--batch-size", "3"]):
        assert main(["eval", str(trained), "--tasks", "cloze", *size]) == 0
    assert sizes == [8 * 32, 3 * 32]  # sequences of 32 tokens


def test_other_text_is_asked_about_where_it_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "gand best min lor " * 90 + str(n), "domain": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = ["data=files", f"data.path={tmp_path}/other.jsonl"]
    own = {score.metric: score.value for score in evaluate_run(trained, ["cloze"])[0]}
    scores = {score.metric: score.value for score in evaluate_run(trained, ["cloze"], text=other)[0]}
    assert scores.keys() == own.keys() | {"bench/cloze_a", "bench/cloze_b"}
    assert scores["bench/cloze_margin"] != own["bench/cloze_margin"]
    assert refusal(capsys, "eval", trained, "--tasks", "cloze", "--text", "data=synthetic").startswith(
        "data='recall' is not valid: text, such as data=english"
    )


def test_a_table_has_room_for_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    show([Score("words", "acc (first)", 0.51239, 0.25, None), Score("cloze", "bench/cloze", 0.5, None, 0.25)])
    words, cloze = (line for line in capsys.readouterr().out.splitlines() if "0.5" in line)
    assert re.fullmatch(r" words +acc \(first\) +0\.5124 +0\.2500 *", words)
    assert re.fullmatch(r" cloze +bench/cloze +0\.5000 +0\.2500 *", cloze)
    assert words.index("0.2500") < cloze.index("0.2500")  # a standard error, and chance


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "arithmetic"], "arithmetic: the text has no domain 'maths', only text"),
        (["--tasks", ","], "--tasks: name at least one, as in --tasks cloze,copying"),
        (["--tasks", "cloze", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--tasks", "cloze", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--tasks", "cloze", "--include-path", "nowhere"], "--include-path nowhere: no such folder"),
        (["--tasks", "cloze", "--text", "data=latin"], "data='latin' is not valid: choose one of"),
        (["--tasks", "cloze", "--out", "nowhere/scores.json"], "--out nowhere/scores.json: no folder nowhere"),
        (["--tasks", "cloze", "--out", "."], "--out .: a folder, not a file"),
    ],
)
def test_mistakes_are_one_line_and_cost_no_evaluation(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Any, message: str
) -> None:
    monkeypatch.setattr(TextBenchmarks, "run_cloze", lambda *_, **__: pytest.fail("evaluated"))
    assert refusal(capsys, "eval", trained, *arguments).startswith(message)


def test_questions_longer_than_the_run_reads_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without benchmarks is asked with the default sizes."""
    without_checksums(trained)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    (trained / "config.yaml").write_text(yaml.safe_dump(config | {"benchmarks": None}))
    for task, line in (
        ("cloze", "benchmarks.cloze_context=32 is not valid: 48 tokens per question, at most 32 as in training"),
        ("copying", "benchmarks.copying_length=24 is not valid: 48 tokens per question, at most 32 as in training"),
    ):
        assert refusal(capsys, "eval", trained, "--tasks", task) == line


def test_data_without_text_have_no_questions(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for word in quick if not word.startswith("data")]
    fit.fit(dsv2.load([*settings, "data=synthetic", "trainer.tokens=128"]), tmp_path / "numbers")
    assert refusal(capsys, "eval", tmp_path / "numbers", "--tasks", "cloze,copying") == (
        f"cloze, copying: needs held-out text, but the data of {tmp_path}/numbers are not text"
    )


def test_only_what_is_asked_for_must_fit(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sequences of 32 tokens are too short for the default cloze questions, not for exercises."""
    rows = [{"text": sheet.text, "domain": "maths"} for sheet in worksheets(40_000, val_ratio=0.1, seed=5)]
    (tmp_path / "maths.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fit.fit(dsv2.load([*quick, f"data.path={tmp_path}/maths.jsonl", "trainer.tokens=128"]), tmp_path / "run")
    assert main(["eval", str(tmp_path / "run"), "--tasks", "arithmetic"]) == 0
    assert "bench/arithmetic" in capsys.readouterr().out
    line = "benchmarks.cloze_context=32 is not valid: 48 tokens per question, at most 32 as in training"
    assert refusal(capsys, "eval", tmp_path / "run", "--tasks", "arithmetic,cloze") == line


def test_a_failing_benchmark_does_not_take_the_rest_along(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no bytes")

    monkeypatch.setattr(TextBenchmarks, "run_cloze", broken)
    assert {score.task for score in evaluate_run(trained, ["cloze", "copying"])[0]} == {"copying"}
    assert capsys.readouterr().err == "warning: cloze: failed; ZeroDivisionError: no bytes\n"
    assert refusal(capsys, "eval", trained, "--tasks", "cloze") == "cloze: failed; ZeroDivisionError: no bytes"


# ---- tasks of lm-evaluation-harness ----------------------------------------------------------------------------------


def test_without_the_package_own_benchmarks_remain(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(capsys, "eval", trained, "--tasks", "hellaswag") == (
        "hellaswag: needs lm-evaluation-harness: pip install 'dsv2[eval]'; "
        "available without it: cloze, copying, arithmetic, needle, following, humaneval"
    )
    assert main(["eval", str(trained), "--tasks", "copying"]) == 0


def write_task(folder: Path) -> list[dict[str, Any]]:
    """A local multiple-choice task of 4 questions."""
    folder.mkdir()
    rows = [{"q": f"Ban{n * ' ben'}", "choices": [" bin bon", " bun", " dor"], "gold": n % 3} for n in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{folder}/rows.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "words.yaml").write_text(yaml.safe_dump(task))
    return rows


@pytest.mark.slow
def test_a_local_task_from_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = write_task(tmp_path / "tasks"), tmp_path / "scores.json"
    arguments = ["eval", str(trained), "--include-path", str(tmp_path / "tasks"), "--out", str(out)]
    assert main([*arguments, "--tasks", "words,cloze,copying"]) == 0
    shown = capsys.readouterr().out
    scores = {(row["task"], row["metric"]): row for row in json.loads(out.read_text())["scores"]}

    opened, right = open_run(trained), 0
    encode = opened.tokenizer.encode
    for row in rows:
        nats = [looped(opened.model, encode(row["q"]), encode(choice))[0] for choice in row["choices"]]
        right += nats.index(max(nats)) == row["gold"]
    assert scores["words", "acc"]["value"] == right / len(rows)
    assert scores["words", "acc"]["stderr"] is not None
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    for name in ("cloze", "copying"):
        assert scores[name, f"bench/{name}"]["value"] == pytest.approx(metrics[f"bench/{name}"], rel=FLOAT32_MODULE)
        assert f"bench/{name}" in shown

    assert main([*arguments, "--tasks", "words", "--limit", "1"]) == 0
    first = json.loads(out.read_text())["scores"][0]["value"]
    assert first in (0.0, 1.0)

    assert main([*arguments, "--tasks", "wrods"]) == 2
    assert "error: wrods: no such task; did you mean words" in capsys.readouterr().err
    (tmp_path / "tasks" / "rows.jsonl").unlink()
    assert main([*arguments, "--tasks", "words"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: words: cannot be loaded; FileNotFoundError")

    assert main([*arguments, "--tasks", "words,copying"]) == 1  # the other task was scored
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: words: cannot be")]
    assert len(warnings) == 1
    assert {row["task"] for row in json.loads(out.read_text())["scores"]} == {"copying"}
