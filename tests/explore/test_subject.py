"""Which runs can be explored, at which steps, and what is said of the others."""

import json
import shutil

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.commands.huggingface import export_hf, import_hf
from dsv2.explore.subject import model_at, open_subject
from dsv2.storage import checkpoints
from dsv2.training import fit
from dsv2.training.saved import load_model


def test_steps_and_their_weights(run, quick):
    subject = open_subject(run)
    assert subject.steps == (0, 8, 12)
    assert subject.moe_layers == [1, 2]
    assert subject.most_tokens == 32
    newest = load_model(run).state_dict()
    assert all(torch.equal(weight, newest[name]) for name, weight in model_at(run, 12).state_dict().items())
    assert not torch.equal(model_at(run, 8).embedding, model_at(run, 12).embedding)
    initial = subject.config.model.build(seed=subject.config.seed)
    assert torch.equal(model_at(run, 0).embedding, initial.embedding)
    assert not model_at(run, 0).training
    subject.config.data.open(sequence_length=32, seed=0, validation_tokens=512)
    assert 0 < len(subject.tokenizer.encode(subject.held_out)) <= 32
    words = subject.held_out.split()
    assert all(len(word.strip(".")) in (3, 4) for word in words), "cut words"


def test_a_damaged_checkpoint_is_left_out(run):
    path = run / "checkpoints" / checkpoints.name_of(12)
    path.write_bytes(path.read_bytes()[:-1])
    scratch = run / "checkpoints" / ".step.1.tmp"
    scratch.touch()
    assert checkpoints.steps(run / "checkpoints") == [8]
    assert scratch.exists()  # of a training that is still writing


def test_runs_that_cannot_be_explored_are_named_with_the_reason(run, quick, tmp_path, capsys):
    fit.fit(dsv2.load([*quick, "model/ffn=dense"]), tmp_path / "dense")
    export_hf(run, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported")
    shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(run, tmp_path / "changed")
    result = json.loads((run / "result.json").read_text())
    result["data"]["trained_tokenizer"] = "of other text"
    (tmp_path / "changed" / "result.json").write_text(json.dumps(result))
    for name, reason in {
        "dense": "a dense model routes nothing",
        "imported": "imported; its config.yaml names no data",
        "bare": "no sound checkpoint",
        "changed": "its corpus has changed since",
        "nowhere": "not a run directory",
    }.items():
        assert main(["explore", str(tmp_path / name), "--no-browser"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path / name}: ")
        assert reason in said
        assert said.count("\n") == 1


def test_requests_that_make_no_sense(run, capsys):
    assert main(["explore", str(run), str(run), str(run)]) == 2
    assert "one run, or two to compare" in capsys.readouterr().err
    assert main(["explore", str(run), "--port", "70000"]) == 2
    assert "port=70000: between 1 and 65535" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["synthetic", "synthetic_copying"])
def test_data_without_text_have_no_tokenizer(task, tmp_path, capsys):
    overrides = [f"data={task}", "model.dim=16", "trainer.tokens=2048", "trainer.validation_tokens=512"]
    quiet = ["trainer.progress=false", "logger.wandb.mode=disabled", "trainer.accelerator=cpu"]
    fit.fit(dsv2.load([*overrides, *quiet]), tmp_path / "run")
    assert main(["explore", str(tmp_path / "run")]) == 2
    assert "its data are no text" in capsys.readouterr().err
