"""Runs that start from the weights of another: what they do first, resuming them, and evaluation alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.config import ConfigError
from dsv2.evaluation.validation import evaluate
from dsv2.storage.rundir import finished
from dsv2.storage.weights import hash_of
from dsv2.training.fit import fit
from dsv2.training.run import Run
from dsv2.training.saved import open_run
from tests.references.runs import rows, timeless

NAME = "toy/smoke/moe/0"


def derived(*words: str) -> Run.Config:
    quiet = ["trainer.progress=false", "trainer.accelerator=cpu", "logger.wandb.mode=disabled"]
    return dsv2.load([f"init_from={NAME}", *quiet, "trainer.checkpoint_every=4", *words])


def test_training_goes_on_from_the_weights_of_the_origin(trained: Path, tmp_path: Path) -> None:
    still = fit(derived("optim.lr=1e-30", "optim.weight_decay=0"), tmp_path / "still")
    assert still["metrics"]["val/loss"] == pytest.approx(open_run(trained).result["metrics"]["val/loss"], abs=1e-6)
    result = fit(derived("model/rope=yarn", "trainer.sequence_length=64"), tmp_path / "run")
    weights = open_run(trained).model.state_dict()
    origin = {"run": str(trained), "fingerprint": trained.name, "step": 12, "weights": hash_of(weights)}
    assert result["provenance"]["origin"] == origin
    assert (result["status"], result["steps"], result["tokens"]) == ("finished", 6, 1536)
    run = open_run(tmp_path / "run")
    assert run.tokenizer.hash == open_run(trained).tokenizer.hash
    assert "origin.json" in result["files"]
    with pytest.raises(ValueError, match="its initial weights are those of"):
        run.model_at(0)


def test_a_killed_run_resumes_without_its_origin_as_if_nothing_had_happened(trained, tmp_path, crashing):
    run = derived("seed=1")
    fit(run, tmp_path / "whole")
    with crashing(6):
        fit(run, tmp_path / "killed")
    shutil.rmtree(trained)
    fit(run, tmp_path / "killed")
    one, other = open_run(tmp_path / "whole"), open_run(tmp_path / "killed")
    assert hash_of(one.model.state_dict()) == hash_of(other.model.state_dict())
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert one.result["provenance"]["origin"] == other.result["provenance"]["origin"]


def test_killed_before_the_first_checkpoint_it_starts_again_from_the_origin(trained, tmp_path, crashing):
    run = derived()
    fit(run, tmp_path / "whole")
    with crashing(2):
        fit(run, tmp_path / "killed")
    fit(run, tmp_path / "killed")
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    with crashing(2):
        fit(run, tmp_path / "lost")
    shutil.rmtree(trained)
    with pytest.raises(ConfigError, match=r"init_from=.* is not valid: a run whose weights can be read"):
        fit(run, tmp_path / "lost")
    assert open_run(tmp_path / "lost").result["status"] == "failed"


def test_without_what_was_kept_of_the_origin_it_starts_again(trained, tmp_path, crashing, capsys):
    run = derived()
    with crashing(10):
        fit(run, tmp_path / "run")
    (tmp_path / "run" / "origin.json").write_text("{}")
    fit(run, tmp_path / "run")
    assert "training restarts from step 0" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "run")] == [2, 4, 6, 8, 10, 12]


def test_the_run_directory_may_be_moved_while_it_trains(trained, tmp_path, crashing):
    run = derived()
    fit(run, tmp_path / "whole")
    with crashing(10):
        fit(run, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    fit(open_run(tmp_path / "moved").config, tmp_path / "moved")
    assert rows(tmp_path / "whole") == rows(tmp_path / "moved")


def test_weights_that_changed_since_are_refused(trained: Path, tmp_path: Path) -> None:
    run = derived()
    shutil.copyfile(trained / "checkpoints/step-000000008.ckpt", trained / "checkpoints/step-000000012.ckpt")
    manifest = trained / "checkpoints/manifest.json"
    listed = json.loads(manifest.read_text())
    listed["step-000000012.ckpt"]["sha256"] = listed["step-000000008.ckpt"]["sha256"]
    manifest.write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match=r"the run whose weights have the SHA-256 \w+; those there now have"):
        fit(run, tmp_path / "run")


# ---- data ------------------------------------------------------------------------------------------------------------


def test_other_data_are_read_with_the_tokenizer_of_the_origin(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for number in range(8):
        (tmp_path / "other" / f"{number}.txt").write_text(f"{number} of quite other words, and of figures. " * 60)
    words = ["data=files", f"data.path={tmp_path}/other/*.txt", "benchmarks=none", "trainer.tokens=256"]
    fit(derived(*words), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.config.data.vocab_size == 300  # of the origin, although the default of data=files is another
    assert run.tokenizer.hash == open_run(trained).tokenizer.hash == run.source.tokenizer.hash
    text = run.tokenizer.decode(run.validation.inputs[0].tolist())
    assert "figures" in text
    shutil.rmtree(tmp_path / "runs" / ".data")  # the prepared corpus is made again, with the same tokenizer
    again = open_run(tmp_path / "run")
    assert torch.equal(again.validation.inputs, run.validation.inputs)


def test_the_tokenizer_of_an_imported_model_goes_along_with_its_special_tokens(imported, quick, tmp_path):
    data = [word for word in quick if not word.startswith(("model", "data.vocab_size"))]
    run = dsv2.load([*data, f"init_from={imported}", "trainer.tokens=256"])
    result = fit(run, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert (result["provenance"]["origin"]["fingerprint"], result["provenance"]["origin"]["step"]) == (None, None)
    assert opened.tokenizer.prefix == open_run(imported).tokenizer.prefix != ()
    assert type(opened.source.tokenizer) is type(opened.tokenizer) is type(open_run(imported).tokenizer)
    batch = opened.validation
    scores = evaluate(opened.model, batch, batch_size=4, token_bytes=opened.source.token_bytes)
    assert scores["val/bpb"] == pytest.approx(result["metrics"]["val/bpb"], rel=1e-6)


def test_a_model_of_text_does_not_go_on_without_text(trained: Path, quick: list[str], tmp_path: Path) -> None:
    synthetic = ["data=synthetic", "data.vocab_size=300", "benchmarks=none", "trainer.tokens=256"]
    run = dsv2.load([*synthetic, f"init_from={NAME}"])
    with pytest.raises(ConfigError, match=r"data='recall' is not valid: text, like the data of .*/trials/"):
        fit(run, tmp_path / "run")
    others = [word for word in quick if not word.startswith("data")]
    fit(dsv2.load([*others, *synthetic]), tmp_path / "synthetic")
    back = dsv2.load([*quick, "trainer.tokens=256", f"init_from={tmp_path / 'synthetic'}"])
    with pytest.raises(
        ConfigError, match=r"data='files' is not valid: the data of .*, which has no tokenizer for others"
    ):
        fit(back, tmp_path / "back")
    again = dsv2.load(["trainer.tokens=256", f"init_from={tmp_path / 'synthetic'}", "logger.wandb.mode=disabled"])
    assert fit(again, tmp_path / "again")["status"] == "finished"


def test_a_changed_tokenizer_of_the_same_data_is_refused(trained: Path, tmp_path: Path) -> None:
    run = derived()
    begun = open_run(trained).tokenizer.to_json()
    (trained / "result.json").unlink()
    record = json.loads((trained / "data.json").read_text())
    del record["identity"]["trained_tokenizer"]
    (trained / "data.json").write_text(json.dumps(record))
    (trained / "tokenizer.json").write_text(begun.replace('"<|endoftext|>"', '"<|end|>"'))
    with pytest.raises(ConfigError, match="a run with the tokenizer of these data"):
        fit(run, tmp_path / "run")


# ---- evaluation alone ------------------------------------------------------------------------------------------------


def test_no_tokens_means_evaluation_alone(trained: Path, tmp_path: Path) -> None:
    run = derived("trainer.tokens=0")
    result = fit(run, tmp_path / "run")
    before = open_run(trained).result["metrics"]
    now = timeless(result["metrics"])
    assert {"val/loss", "val/bpb", "bench/cloze", "routing/max_violation", "val/loss_at_capacity"} <= now.keys()
    assert not any(name.startswith("train/") for name in now)
    assert now.pop("routing/drop_rate") == 0  # in training, the other is
    assert now == {name: before[name] for name in now}
    assert (result["status"], result["steps"], result["tokens"]) == ("finished", 0, 0)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0]
    opened = open_run(tmp_path / "run")
    assert hash_of(opened.model.state_dict()) == hash_of(open_run(trained).model.state_dict())
    assert hash_of(opened.model_at(0).state_dict()) == hash_of(opened.model.state_dict())
    assert finished(tmp_path / "run") == fit(run, tmp_path / "run")


def test_evaluation_alone_starts_over_when_killed(trained: Path, tmp_path: Path) -> None:
    run = derived("trainer.tokens=0")
    fit(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    fit(run, tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [0]


def test_a_derived_run_is_an_origin_itself(trained: Path, tmp_path: Path) -> None:
    fit(derived("trainer.tokens=0"), tmp_path / "one")
    again = dsv2.load([f"init_from={tmp_path / 'one'}", "trainer.tokens=512"])
    assert again.init_from.weights == dsv2.load([f"init_from={NAME}"]).init_from.weights
    result = fit(dataclasses.replace(again, logger=derived().logger), tmp_path / "two")
    assert result["provenance"]["origin"]["run"] == str(tmp_path / "one")


def test_the_bias_of_experts_goes_along(quick: list[str], runs: Path) -> None:
    run = dsv2.load([*quick, "model/ffn=loss_free"])
    fit(run, runs / "train" / run.fingerprint())
    bias = open_run(runs / "train" / run.fingerprint()).model.layers[1].ffn.bias
    assert bias.any()
    start = dsv2.load([f"init_from={runs / 'train' / run.fingerprint()}", "trainer.tokens=0"])
    fit(start, runs / "train" / start.fingerprint())
    assert torch.equal(open_run(runs / "train" / start.fingerprint()).model.layers[1].ffn.bias, bias)
