"""A run that is opened answers as it was trained, from any folder and whatever became of its corpus, or refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.commands.analyse import analyse
from dsv2.commands.evaluate import evaluate_run
from dsv2.commands.huggingface import export_hf
from dsv2.config import ConfigError
from dsv2.data.tokenizer import Tokenizer
from dsv2.explore.subject import NO_TEXT, open_subject
from dsv2.training import fit
from dsv2.training.saved import SavedRun, open_run
from tests.references.answers import TASKS, answers, written
from tests.references.faults import flip
from tests.references.runs import without_checksums


def other_text(texts: Path) -> None:
    for path in texts.glob("*.txt"):
        path.write_text("zzz yyy xxx. " * 200 + path.name)


def test_what_a_run_keeps(run, texts):
    opened = open_run(run)
    assert opened.config.data.path == str(texts / "*.txt")  # absolute
    record = json.loads((run / "data.json").read_text())
    assert record["identity"] == opened.result["data"]
    assert record["validation"]["documents"] > 0
    assert opened.tokenizer.hash == record["identity"]["trained_tokenizer"]
    assert opened.longest == 32
    assert opened.name == run.name
    assert opened.steps == [8, 12]
    assert opened.model is opened.model
    assert not opened.model.training


@pytest.mark.slow
def test_answers_stay_when_the_corpus_changes_moves_or_goes(run, texts, tmp_path, monkeypatch):
    expected = answers(run, tmp_path / "before")
    other_text(texts)
    assert answers(run, tmp_path / "changed") == expected
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "texts").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)  # where a folder of the same name lies
    monkeypatch.delenv("DSV2_RUNS")
    shutil.copy(texts / "0.txt", elsewhere / "texts" / "0.txt")
    assert answers(run, tmp_path / "from elsewhere") == expected
    shutil.rmtree(texts)
    assert answers(run, tmp_path / "deleted") == expected
    assert not (elsewhere / "runs").exists()  # nothing was prepared anew
    moved = tmp_path / "archive"
    shutil.move(run.parents[1], moved)  # all runs together, the prepared corpora among them
    assert answers(moved / "train" / run.name, tmp_path / "moved") == expected


@pytest.mark.parametrize("change", ["changed", "deleted"])
def test_without_its_prepared_text_only_the_tokenizer_is_left(run, texts, tmp_path, change, capsys):
    text = written(run)
    shutil.rmtree(run.parents[1] / ".data")
    if change == "changed":
        other_text(texts)
        reason = rf"its data \({texts}/\*\.txt\) have changed since it was trained, in their corpus"
    else:
        shutil.rmtree(texts)
        reason = rf"data\.path='{texts}/\*\.txt' is not valid: a glob that matches files; nothing does"
    assert written(run) == text
    for refused in (lambda: analyse(run), lambda: evaluate_run(run, TASKS), lambda: open_run(run).validation):
        with pytest.raises(ValueError, match=reason):
            refused()
    capsys.readouterr()
    assert open_subject(open_run(run)).held_out == NO_TEXT
    assert capsys.readouterr().err.startswith("warning: ")
    export_hf(run, tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == (run / "tokenizer.json").read_text()
    assert main(["analyse", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_prepared_text_is_made_again_where_the_corpus_is_what_it_was(run, tmp_path):
    expected = answers(run, tmp_path / "before")
    shutil.rmtree(run.parents[1] / ".data")
    assert answers(run, tmp_path / "after") == expected


def test_another_version_of_tokenizers_changes_nothing(run, tmp_path, monkeypatch):
    """It names the prepared corpus, and is part of fingerprints; a run that is there goes by what it kept."""
    expected = answers(run, tmp_path / "before")
    monkeypatch.setattr("tokenizers.__version__", "99.0")
    assert answers(run, tmp_path / "after") == expected
    shutil.rmtree(run.parents[1] / ".data")
    assert answers(run, tmp_path / "prepared anew") == expected


def test_a_tokenizer_that_is_learned_otherwise_now_is_refused(run):
    without_checksums(run)
    record = json.loads((run / "data.json").read_text())
    record["identity"]["trained_tokenizer"] = "another"
    (run / "data.json").write_text(json.dumps(record))
    shutil.rmtree(run.parents[1] / ".data")
    with pytest.raises(ValueError, match="in their trained_tokenizer"):
        open_run(run).validation  # noqa: B018


def test_runs_from_before_keep_what_their_result_says(run, texts, tmp_path, capsys):
    expected = answers(run, tmp_path / "before")
    without_checksums(run)
    (run / "data.json").unlink()
    (run / "tokenizer.json").unlink()
    assert answers(run, tmp_path / "after") == expected
    shutil.rmtree(run.parents[1] / ".data")
    other_text(texts)
    with pytest.raises(ValueError, match="have changed since it was trained"):
        written(run)
    (run / "result.json").unlink()  # one that was interrupted kept nothing to go by
    capsys.readouterr()
    open_run(run).validation  # noqa: B018
    assert "stores no identity of its corpus" in capsys.readouterr().err


def test_sequences_that_are_made_otherwise_now_are_refused(runs):
    settings = ["model=tiny", "data=synthetic_arithmetic", "trainer.sequence_length=16", "trainer.tokens=64"]
    config = dsv2.load([*settings, "trainer.batch.size=2", "trainer.progress=false"])
    folder = runs / "train" / config.fingerprint()
    fit.fit(config, folder)
    assert len(open_run(folder).validation.inputs)
    without_checksums(folder)
    record = json.loads((folder / "data.json").read_text())
    record["identity"]["format"] = "3"
    (folder / "data.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"its data \(arithmetic\) are made in format 4, not 3 as when it was trained"):
        open_run(folder).validation  # noqa: B018
    assert open_run(folder).model is not None


def test_other_text_can_be_looked_at(run, texts, tmp_path):
    with (tmp_path / "other.jsonl").open("w") as file:
        for number in range(40):
            words = " ".join(("gand best min " if number % 2 else "lor fust ban ").split() * 60)
            file.write(json.dumps({"text": f"{words} {number}", "domain": "ab"[number % 2]}) + "\n")
    other = ["data=files", f"data.path={tmp_path}/other.jsonl"]
    source = open_run(run, text=other).source
    assert source.domains == ("a", "b")
    assert source.tokenizer.hash == open_run(run).tokenizer.hash  # its own, not one trained on the other text
    analyse(run, out=tmp_path / "out", only=["domains"], text=other)
    assert (tmp_path / "out" / "domain_shares.csv").is_file()
    with pytest.raises(ValueError, match="text, such as data=english"):
        open_run(run, text=["data=synthetic"]).source  # noqa: B018


def test_weights_of_a_step(run, quick):
    config = open_run(run).config
    initial = config.model.build(seed=config.seed)
    assert torch.equal(open_run(run, step=0).model.embedding, initial.embedding)
    assert not torch.equal(open_run(run, step=8).model.embedding, open_run(run).model.embedding)
    assert torch.equal(open_run(run, step=12).model.embedding, open_run(run).model.embedding)
    with pytest.raises(ValueError, match="step=4 has no checkpoint; steps that have one: 8, 12"):
        open_run(run, step=4).model  # noqa: B018
    assert open_run(run, device="meta").model.embedding.is_meta


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "not a run directory"), ("[1]", "has no model"), ("a: [", "config.yaml: "), (b"\xff\xfe", "config.yaml: ")],
)
def test_what_is_no_run(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=reason):
        SavedRun(tmp_path)


def test_a_config_without_data_is_no_imported_model(run):
    without_checksums(run)
    path = run / "config.yaml"
    whole = path.read_text()
    path.write_text(whole[: whole.index("\ndata:") + 1])
    with pytest.raises(ValueError, match=rf"{path}: has no data, which every trained run has"):
        open_run(run)


def test_another_tokenizer_is_refused(run):
    without_checksums(run)
    path = run / "tokenizer.json"
    Tokenizer.train(["Ben bin bon " * 9], 300).save(path)
    for part in ("tokenizer", "reader"):
        with pytest.raises(ValueError, match=rf"{path}: not the tokenizer that the run was trained with"):
            getattr(open_run(run), part)


def test_text_names_other_data(run):
    with pytest.raises(ConfigError, match=r"text='trainer\.tokens=3' is not valid: overrides that select other data"):
        open_run(run, text=["trainer.tokens=3"]).source  # noqa: B018


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "tokenizer.json"])
def test_a_finished_run_whose_files_changed_is_refused(run, name):
    flip(run / name)
    with pytest.raises(ValueError, match=rf"{run / name}: not as it was when the run finished"):
        open_run(run)
    (run / name).unlink()
    with pytest.raises(ValueError, match=rf"{run / name}: missing"):
        open_run(run)


def test_damaged_records_are_named(run):
    without_checksums(run)
    for content in (
        "{",
        "[]",
        '{"identity": 3}',
        '{"identity": {}, "prepared": 3}',
        '{"identity": {}, "prepared": null}',
    ):
        (run / "data.json").write_text(content)
        with pytest.raises(ValueError, match=r"data\.json: damaged"):
            open_run(run).validation  # noqa: B018
    for content in ('{"identity": {}}', '{"identity": {}, "prepared": "x"}', '{"identity": {"corpus": [1]}}'):
        (run / "data.json").write_text(content)
        with pytest.raises(ValueError, match="have changed since it was trained, in their corpus"):
            open_run(run).validation  # noqa: B018
