"""`init_from`: which run is meant, what comes from it, what identifies it, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import dsv2
from dsv2.config import ConfigError, plain
from dsv2.storage import checkpoints
from dsv2.storage.weights import hash_of
from dsv2.training.origin import locate, read_origin, require_shapes
from dsv2.training.run import from_plain
from dsv2.training.saved import open_run

NAME = "toy/smoke/moe/0"


def test_whatever_is_not_overridden_comes_from_the_origin(trained: Path) -> None:
    then = open_run(trained).config
    run = dsv2.load([f"init_from={NAME}"])
    same = dataclasses.replace(
        then, init_from=run.init_from, logger=run.logger, study=None, scale=None, arm=None, trainer=run.trainer
    )
    assert run == same
    assert (run.trainer.tokens, run.trainer.sequence_length) == (then.trainer.tokens, then.trainer.sequence_length)
    assert run.trainer.accelerator == "auto"  # where it runs is not part of a run
    assert run.init_from == dataclasses.replace(read_origin(trained).config)
    assert (run.init_from.step, run.init_from.weights) == (12, hash_of(open_run(trained).model.state_dict()))


def test_overrides_win_key_by_key_and_group_by_group(trained: Path) -> None:
    then = open_run(trained).config
    words = ["model/rope=yarn", "model.rope.yarn.factor=8", "trainer.tokens=512", "optim.lr=1e-5", "seed=3"]
    run = dsv2.load([*words, f"init_from={NAME}"])
    assert run.model.rope.yarn.factor == 8
    assert dataclasses.replace(run.model, rope=then.model.rope) == then.model
    assert run.optim == dataclasses.replace(then.optim, lr=1e-5)
    assert dataclasses.replace(run.trainer, tokens=1536).batches().num_steps == then.trainer.batches().num_steps
    assert (run.seed, run.trainer.tokens) == (3, 512)
    assert dsv2.load([f"init_from={NAME}", "benchmarks=none"]).benchmarks is None
    assert dsv2.load([f"init_from={NAME}", "loss.expert=0"]).loss.expert == 0


def test_a_run_is_named_by_path_name_or_fingerprint_with_or_without_a_step(trained: Path, runs: Path) -> None:
    for name in (NAME, str(trained), trained.name, trained.name[:6]):
        assert locate(name) == (trained, None)
        assert locate(f"{name}:8") == (trained, 8)
    runs.joinpath("a:8").mkdir()
    assert locate(str(runs / "a:8")) == (runs / "a:8", None)
    assert dsv2.load([f"init_from={NAME}:8"]).init_from.step == 8


@pytest.mark.parametrize("digits", ["1234567890123456", "12e4567890123456", "00001111"])
def test_a_fingerprint_that_reads_as_a_number_is_text(trained: Path, digits: str) -> None:
    trained.rename(trained.with_name(digits.ljust(16, "0")))
    assert dsv2.load([f"init_from={digits}"]).init_from.run.endswith(digits.ljust(16, "0"))


def test_the_fingerprint_is_of_the_weights_not_of_their_place(trained: Path, tmp_path: Path) -> None:
    there = shutil.copytree(trained, tmp_path / "there")
    here, copied = (dsv2.load([f"init_from={run}"]) for run in (trained, there))
    assert here.init_from.run != copied.init_from.run
    assert here.fingerprint() == copied.fingerprint()
    earlier = dsv2.load([f"init_from={trained}:8"])
    assert earlier.fingerprint() != here.fingerprint()
    assert dataclasses.replace(here, init_from=None).fingerprint() not in (here.fingerprint(), earlier.fingerprint())
    weights = checkpoints.load(there / "checkpoints" / "step-000000012.ckpt")
    weights["state_dict"]["model.norm.w"][0] += 1e-6
    checkpoints.save(weights, there / "checkpoints" / "step-000000012.ckpt")
    assert dsv2.load([f"init_from={there}"]).fingerprint() != here.fingerprint()


def test_a_stored_config_needs_no_origin(trained: Path) -> None:
    run = dsv2.load([f"init_from={NAME}"])
    shutil.rmtree(trained)
    again = from_plain(plain(run))
    assert again == run
    assert again.fingerprint() == run.fingerprint()
    with pytest.raises(ConfigError, match="a run whose weights can be read"):
        again.init_from.open()


def test_an_imported_checkpoint_has_model_and_tokenizer(imported: Path, quick: list[str]) -> None:
    data = [word for word in quick if not word.startswith(("model", "data.vocab_size"))]
    run = dsv2.load([*data, f"init_from={imported}"])
    assert run.model == open_run(imported).model_config
    assert run.data.vocab_size == open_run(imported).tokenizer.vocab_size
    assert (run.trainer.tokens, run.init_from.step) == (1536, None)
    (imported / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"init_from=.* is not valid: a run with a tokenizer"):
        dsv2.load([*data, f"init_from={imported}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.dim=32"], r"layers.0.attention|embedding is \[320, 16\] there and \[320, 32\] here"),
        (["model.num_layers=3"], r"layers.2.attention_norm.w is missing there and \[16\] here"),
        (["model.tie_embeddings=true"], r"head is \[320, 16\] there and missing here"),
        (
            ["model/ffn=loss_free", "model.ffn.num_experts=8", "model.ffn.expert_dim=8"],
            r"layers.1.ffn.bias is missing there and \[8\] here",
        ),
        (["data.vocab_size=301"], "data.vocab_size=301 is not valid: 300, as in"),
        (["recipe=small"], "recipe='given' is not valid: not beside init_from"),
        (["trainer.tokens=5"], "trainer.tokens=5 is not valid: at least one step, 128 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(trained: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([f"init_from={NAME}", *words])


@pytest.mark.parametrize("name", ["nothing", "toy/smoke/other/0", NAME + ":3", "dead", "'../x'", '""'])
def test_no_such_run(trained: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"init_from='.*' is not valid: RUN or RUN:STEP"):
        dsv2.load([f"init_from={name}"])


def test_evaluation_alone_needs_an_origin() -> None:
    with pytest.raises(
        ConfigError, match=r"trainer.tokens=0 is not valid: at least one step; 0, to evaluate only, needs init_from"
    ):
        dsv2.load(["trainer.tokens=0"])


def test_the_first_weight_that_differs_is_named() -> None:
    shapes = {"a": (1,), "b": (2, 3), "c": (4,)}
    require_shapes(shapes, dict(shapes), "run")
    with pytest.raises(ConfigError, match=r"b is \[3, 2\] there and \[2, 3\] here"):
        require_shapes(shapes | {"b": (3, 2), "c": (5,)}, shapes, "run")


def test_a_damaged_last_checkpoint_is_not_taken_for_the_end_of_a_trial(trained: Path) -> None:
    origin = dataclasses.replace(read_origin(trained).config, weights=None, trial=trained.name)
    torch.testing.assert_close(origin.open().weights["norm.w"], open_run(trained).model.norm.w.detach())
    (trained / "checkpoints" / "step-000000012.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match="step=12 has no checkpoint; steps that have one: 8"):
        origin.open()


def test_keys_that_only_the_origin_has_can_be_set(trained: Path, quick: list[str], tmp_path: Path) -> None:
    """Its data are files, and with YaRN its model has keys that a default one lacks."""
    shutil.copytree(trained, tmp_path / "yarn")
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    stored["model"]["rope"]["yarn"] = {"_target_": "dsv2.models.rope.Yarn.Config", "factor": 4.0, "mscale": 0.5}
    (tmp_path / "yarn" / "config.yaml").write_text(yaml.safe_dump(stored))
    (tmp_path / "yarn" / "result.json").unlink()
    path = next(word for word in quick if word.startswith("data.path="))
    run = dsv2.load([f"init_from={tmp_path / 'yarn'}", "model.rope.yarn.factor=16", path.replace("*.txt", "1*.txt")])
    assert (run.model.rope.yarn.factor, run.model.rope.yarn.mscale) == (16, 0.5)
    assert run.data.path.endswith("1*.txt")
    assert run.data.val_ratio == open_run(trained).config.data.val_ratio
    with pytest.raises(ConfigError, match=r"model.rope.yarn.factr=16 is not valid"):
        dsv2.load([f"init_from={tmp_path / 'yarn'}", "model.rope.yarn.factr=16"])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("data", 5, "its data have no vocab_size"),
        ("data", {"vocab_size": "many"}, "its data have no vocab_size"),
        ("model", None, "has no model"),
        ("model", {"_target_": "os.system"}, "model._target_='os.system' is not valid"),
        ("trainer", [], "trainer"),
        ("optim", "fast", "optim"),
    ],
)
def test_a_config_that_was_tampered_with_is_one_line(trained: Path, part: str, value: object, message: str) -> None:
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    (trained / "config.yaml").write_text(yaml.safe_dump(stored | {part: value}))
    (trained / "result.json").unlink()
    with pytest.raises(ConfigError, match=message) as refused:
        dsv2.load([f"init_from={NAME}"])
    assert "\n" not in str(refused.value)
