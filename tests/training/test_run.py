"""The config of a run: what it refuses by name, the budget it pays for, and the folder it keeps its name in."""

import math
import typing
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import dsv2
from dsv2.config import ConfigBase, ConfigError, former_name, plain
from dsv2.distributed.mesh import Mesh
from dsv2.training import fit
from dsv2.training.run import Run, folder_of, from_plain, stored_name


def refused(quick: list[str], *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        dsv2.load([*quick, *overrides])
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.sequence_length=0", "trainer.sequence_length=0 is not valid: positive"),
        ("trainer.validate_every=0", "trainer.validate_every=0 is not valid: positive"),
        ("trainer.log_every=-2", "trainer.log_every=-2 is not valid: positive"),
        ("trainer.checkpoint_every=0", "trainer.checkpoint_every=0 is not valid: positive"),
        ("trainer.tokens=127", "trainer.tokens=127 is not valid: at least one step, 128 tokens"),
        (
            "trainer.validation_tokens=31",
            "trainer.validation_tokens=31 is not valid: at least one sequence, 32",
        ),
        ("trainer.validate_every=3", "trainer.validate_every=3 is not valid: a multiple of trainer.log_every=2"),
        ("trainer.checkpoint_every=5", "trainer.checkpoint_every=5 is not valid: a multiple of trainer.log_every=2"),
        ("seed=-1", "seed=-1 is not valid: 0 or more"),
        ("model.vocab_size=299", "model.vocab_size=299 is not valid: at least data.vocab_size=300"),
        ("trainer.precision=fp16", "trainer.precision='fp16' is not valid: fp32 or bf16"),
        ("trainer.accelerator=tpu", "trainer.accelerator='tpu' is not valid: auto, cpu or gpu"),
        ("logger.wandb.mode=on", "logger.wandb.mode='on' is not valid: offline, online or disabled"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_can(quick: list[str], override: str, message: str) -> None:
    assert refused(quick, override).startswith(message)


@pytest.mark.parametrize(
    "override",
    [
        "trainer.tokens=128",
        "trainer.validation_tokens=32",
        "trainer.validate_every=2",
        "seed=0",
        "model.vocab_size=300",
    ],
)
def test_the_least_that_is_valid_is_taken(quick: list[str], override: str) -> None:
    dsv2.load([*quick, override])


def test_under_a_ramp_the_first_step_is_what_tokens_must_pay_for(quick: list[str]) -> None:
    ramp = "trainer.batch={start: 2, ramp_tokens: 512}"
    assert dsv2.load([*quick, ramp, "trainer.tokens=64"]).trainer.batches().num_steps == 1
    message = refused(quick, ramp, "trainer.tokens=63")
    assert message == "trainer.tokens=63 is not valid: at least one step, 64 tokens"


def test_the_budget_is_filled_as_far_as_whole_steps_go(quick: list[str]) -> None:
    batches = dsv2.load([*quick, "trainer.tokens=1663"]).trainer.batches()
    assert (batches.num_steps, batches.total_tokens) == (12, 1536)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmarks.cloze_context=33", r"benchmarks\.cloze_context=33 is not valid: \d+ tokens per question, at most"),
        ("benchmarks.copying_length=33", r"benchmarks\.copying_length=33 is not valid: \d+ tokens per question"),
    ],
)
def test_questions_longer_than_a_sequence_are_refused(quick: list[str], override: str, message: str) -> None:
    short = ["benchmarks=text", "benchmarks.cloze_context=8", "benchmarks.cloze_continuation=4"]
    short.append("benchmarks.copying_length=8")
    assert dsv2.load([*quick, *short]).benchmarks is not None
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*quick, *short, override])


def test_benchmarks_of_text_need_text(quick: list[str]) -> None:
    others = [word for word in quick if not word.startswith("data")]
    message = refused(others, "data=synthetic", "benchmarks=text")
    assert message == "benchmarks='text' is not valid: none for data without text, such as synthetic sequences"
    dsv2.load([*others, "data=synthetic"])


@pytest.mark.parametrize("values", [None, [1], "run", 3])
def test_a_config_is_a_mapping(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config=.* is not valid: a mapping$"):
        from_plain(values)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(quick: list[str]) -> Run.Config:
    return dsv2.load(quick)


def test_the_fingerprint_names_the_computation_and_nothing_else(run: Run.Config) -> None:
    wandb = replace(run.logger, wandb=replace(run.logger.wandb, mode="online", project="other"))
    elsewhere = replace(run.trainer, accelerator="gpu", checkpoint_every=2, progress=True)
    same = replace(
        run, study="s", scale="small", arm="a", probe="p", logger=wandb, trainer=elsewhere, mesh=Mesh.Config(ep=2)
    )
    assert same.fingerprint() == run.fingerprint()
    assert len(run.fingerprint()) == 16
    others = [replace(run, seed=1)]
    changes: dict[str, Any] = {"tokens": 3072, "log_every": 4, "validate_every": 8, "precision": "bf16"}
    others += [replace(run, trainer=replace(run.trainer, **{name: value})) for name, value in changes.items()]
    assert len({run.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_other_text_at_the_same_path_is_another_run(run: Run.Config, tmp_path: Path) -> None:
    names = []
    for text in ("one text. " * 50, "two texts. " * 50):
        for number in range(3):
            (tmp_path / f"{number}.txt").write_text(text + str(number))
        data: Any = replace(run.data, path=str(tmp_path / "*.txt"))  # type: ignore[call-arg]
        names.append(replace(run, data=data).fingerprint())
    assert names[0] != names[1]


def test_a_run_stays_in_the_folder_it_has(run: Run.Config, tmp_path: Path) -> None:
    """Under the name that it was given, also before classes moved; where both are there, the one of now."""
    now, former = tmp_path / run.fingerprint(), tmp_path / run.fingerprint(former_name)
    assert now != former
    assert folder_of(run, tmp_path) == now
    former.mkdir()
    assert folder_of(run, tmp_path) == former
    assert stored_name(run, former) == former.name
    now.mkdir()
    assert folder_of(run, tmp_path) == now
    assert stored_name(run, now) == stored_name(run, tmp_path / "a folder of one's own") == now.name


# ---- bounds ----------------------------------------------------------------------------------------------------------

CONFIGS = {
    "moe": ["model=v2", "model.vocab_size=102400", "model/ffn/dropping=device", "model/rope=yarn", "data=mixture"],
    "gshard": ["model=tiny", "model/ffn=gshard", "benchmarks=text", "trainer.sequence_length=64"],
    "switch": ["model=tiny", "model/ffn=switch", "model/attention=gqa", "data=files", "data.path=x"],
    "hash": ["model=tiny", "model/ffn=hash", "data=huggingface", "data.path=x"],
    "recall": ["data=synthetic", "model.embedding_std=0.5"],
    "copying": ["data=synthetic_copying"],
    "arithmetic": ["data=synthetic_arithmetic"],
}


def numbers(config: ConfigBase, key: str = "") -> Iterator[tuple[str, ConfigBase, str]]:
    """Every number of a config: its key, the config that holds it, and its field."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, ConfigBase):
            yield from numbers(value, f"{key}{field.name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{key}{field.name}", config, field.name


@pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS)
def test_every_number_has_bounds(overrides: list[str]) -> None:
    """None may be NaN, infinite or -1, whichever type the default is written as."""
    checked = 0
    for key, config, field in numbers(dsv2.load(overrides)):
        is_float = typing.get_type_hints(type(config))[field] in (float, float | None)
        for wrong in (math.nan, math.inf, -math.inf) if is_float else (-1, -(2**70)):
            if key == "optim.clip_norm" and wrong == math.inf:  # no clipping
                continue
            with pytest.raises(ConfigError, match="is not valid"):
                pytest.fail(f"{key}={wrong}: {replace(config, **{field: wrong})}")
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=inf", "optim.lr=inf is not valid: positive and finite"),
        ("optim.lr=nan", "optim.lr=nan"),
        ("optim.lr_factor=1e308", "optim.lr_factor=1e+308"),
        ("model.ffn.routed_scaling_factor=-1", "model.ffn.routed_scaling_factor=-1"),
        ("model.ffn.routed_scaling_factor=nan", "model.ffn.routed_scaling_factor=nan"),
        (f"seed={2**63}", f"seed={2**63} is not valid: 0 or more and less than 2\\*\\*63"),
    ],
)
def test_a_number_out_of_bounds_is_named(override: str, message: str) -> None:
    large = ["optim.lr=10"] if "factor=1e308" in override else []
    with pytest.raises(ConfigError, match="^" + message.replace("+", r"\+")):
        dsv2.load([*large, override])


@pytest.mark.parametrize("ffn", ["gshard", "switch", "hash", "moe"])
def test_the_largest_seed_trains(quick: list[str], tmp_path: Path, ffn: str) -> None:
    dropping = ["model/ffn/dropping=device"] if ffn == "moe" else []
    overrides = [*quick, f"model/ffn={ffn}", *dropping, f"seed={2**63 - 1}", "trainer.tokens=128"]
    assert math.isfinite(fit.fit(dsv2.load(overrides), tmp_path)["metrics"]["val/loss"])


def test_settings_of_older_runs_that_are_no_more_are_passed_over(run: Run.Config) -> None:
    stored = plain(run)
    stored["trainer"] |= {"devices": 2, "strategy": "ddp"}
    stored.pop("mesh")
    assert from_plain(stored) == run
    with pytest.raises(ConfigError, match=r"trainer\.device=2 is not valid: unknown key"):
        from_plain(stored | {"trainer": stored["trainer"] | {"device": 2}})
