"""A mistake ends a command with one line that begins with `error: `, exit status 2, and nothing written.

Every command, option and key of the config is given what it cannot use: null, nothing, the wrong type, numbers out of
range, lists, unknown names, paths that cannot be used, and bytes that are not UTF-8.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsv2
from dsv2.composition import compose, override
from dsv2.config import ConfigError
from dsv2.train import main as train
from dsv2.training import fit
from tests.references.commands import BYTES, LONG, Place

CHOICES: list[list[str]] = [
    [],
    ["data=mixture"],
    ["data=synthetic"],
    ["data=files", "data.path=x"],
    ["data=huggingface", "data.path=x"],
    ["benchmarks=text", "model/ffn/dropping=device", "model/rope=yarn"],
    ["model/ffn=gshard"],
    ["model/ffn=switch"],
    ["model/ffn=hash"],
    ["model/attention=gqa"],
]


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def keys() -> dict[str, tuple[list[str], Any]]:
    """Every key of the config, with the overrides that select it and its default."""
    found: dict[str, tuple[list[str], Any]] = {}
    for overrides in CHOICES:
        for key, value in leaves(compose(overrides)):
            found.setdefault(key, (overrides, value))
    return found


KEYS = keys()
HUGE = "1" + "0" * 30
WRONG = ["[1,[2]]", "{a: 1}", "-1e400", "nan", HUGE, f"'{BYTES}'", "${x}", "${oc.env:NOTHING}"]


@pytest.mark.parametrize("key", sorted(KEYS))
def test_no_key_takes_what_it_cannot_use(key: str) -> None:
    overrides, default = KEYS[key]
    for value in WRONG:
        if value == HUGE and (isinstance(default, float) or key == "model.embedding_std"):
            continue  # a number like any other
        with pytest.raises(ConfigError) as refused:
            dsv2.load([*overrides, f"{key}={value}"])
        assert "\n" not in str(refused.value)
        assert refused.value.key


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(sorted(KEYS)),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3)
    ),
)
def test_a_value_is_taken_or_refused_by_name(key: str, value: Any) -> None:
    with suppress(ConfigError):
        dsv2.load([*KEYS[key][0], override(key, value)])


TRAIN = [
    *(
        f"{group}={value}"
        for group in ("model", "data", "optim", "benchmarks")
        for value in ("null", "3", "nan", "[1]")
    ),
    *("model={a: 1}", "model=tinny", "model=tiny,small", "model/ffn=3", "model/ffn/dropping=x"),
    *("optim.lr=1,2", "optim.lr=${x}", "optim.lr=${oc.env:NOTHING}", "data.vocab_size=???"),
    *("model.dim", "=3", "x=1", f"{LONG}=1", f"optim.lr={LONG}", f"optim.{BYTES}=1", f"study='{BYTES}'"),
    *(
        "trainer.accelerator=gpu",
        "trainer.devices=2",
        "trainer.accelerator=null",
        "mesh.dp=3",
        "mesh.ep=5",
        "mesh.ep=0",
        "mesh=2",
    ),
    *("seed=-1", "seed=null", "seed=" + "9" * 30, "seed=" + "9" * 5000, "study=a/b", "study=''"),
    *("logger.wandb.project=a/b", "logger.wandb.project=''", "logger.wandb=null", "model.num_layers=100000"),
    *("--bogus", "--cfg nope", "--cfg", "--info nope", "seed=1 --help seed=2", "--run --multirun"),
    *("--experimental-rerun nope", "--config-dir nope", "--config-path nope", "--config-name nope", "-x", "-s"),
    *("=x", "@x=1", "/=x", "~", "hydra=3", "optim.betas.x=1", "model.ffn=null", "trainer.batch=null"),
    *("~model", "~nothing", "+x=1", "study=study.yaml arm=nothing", "study=nothing.yaml arm=none", "study=file arm=a"),
    *("study=folder arm=none", "study=study.yaml arm=none seed=x", "study=study.yaml arm=none scale=smok"),
    "study=study.yaml arm=none probe=recal",
]


@pytest.mark.parametrize("words", TRAIN, ids=lambda words: words[:40].encode("ascii", "replace").decode())
def test_training(place: Place, words: str) -> None:
    def devices(run: Any, folder: Path) -> None:  # what `fit` checks first
        from dsv2.training.machine import require_accelerator
        from dsv2.training.processes import joined

        with joined(run):
            require_accelerator(run.trainer.accelerator)
        pytest.fail("a run started")

    place.patch.setattr(fit, "fit", devices)
    place.patch.setattr("torch.cuda.is_available", lambda: False)
    place.refused(train, *words.split())
