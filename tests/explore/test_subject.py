"""Which runs can be explored, at which steps, and what is said of the others."""

import shutil
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.explore.subject import model_at, open_subject
from dsv2.training import fit
from dsv2.training.saved import open_run


def test_steps_and_their_weights(run: Path) -> None:
    opened = open_run(run)
    subject = open_subject(opened)
    assert subject.steps == (0, 8, 12)
    assert subject.moe_layers == [1, 2]
    assert subject.most_tokens == 32
    assert subject.name == "one"
    newest = opened.model.state_dict()
    assert all(torch.equal(weight, newest[name]) for name, weight in model_at(opened, 12).state_dict().items())
    assert not torch.equal(model_at(opened, 8).embedding, model_at(opened, 12).embedding)
    initial = opened.config.model.build(seed=opened.config.seed)
    assert torch.equal(model_at(opened, 0).embedding, initial.embedding)
    assert not model_at(opened, 0).training
    assert model_at(opened, 8) is model_at(opened, 8)  # a page asks again with every click


def test_held_out_text_is_whole_sentences_that_fit(run: Path) -> None:
    subject = open_subject(open_run(run))
    assert 0 < len(subject.run.tokenizer.encode(subject.held_out)) <= 32
    words = subject.held_out.split()
    assert all(len(word.strip(".")) in (3, 4) for word in words), "cut words"


def test_runs_that_cannot_be_explored_are_named_with_the_reason(
    run: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.fit(dsv2.load([*quick, "model/ffn=dense"]), tmp_path / "dense")
    shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    for name, reason in {"dense": "a dense model has no routing", "bare": "no valid checkpoint"}.items():
        assert main(["explore", str(tmp_path / name), "--no-browser"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path / name}: ")
        assert reason in said
        assert said.count("\n") == 1
    assert main(["explore", str(tmp_path / "nowhere"), "--no-browser"]) == 2
    assert capsys.readouterr().err.startswith(f"error: RUN='{tmp_path / 'nowhere'}': a run directory, ")


@pytest.mark.parametrize("task", ["synthetic", "synthetic_copying"])
def test_data_without_text_have_no_tokenizer(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"data={task}", "model.dim=16", "trainer.tokens=2048", "trainer.validation_tokens=512"]
    quiet = ["trainer.progress=false", "logger.wandb.mode=disabled", "trainer.accelerator=cpu"]
    fit.fit(dsv2.load([*overrides, *quiet]), tmp_path / "run")
    assert main(["explore", str(tmp_path / "run")]) == 2
    assert "its data are not text" in capsys.readouterr().err
