"""Mistakes in commands on runs, and in calls from Python; see `test_one_line_config.py`."""

import json
import math
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dsv2
from ablations import results, study
from dsv2.__main__ import main as command
from dsv2.config import ConfigError
from dsv2.interop.hf_config import config_to_hf, read_config
from dsv2.training.saved import open_run
from tests.references.commands import BYTES, LONG, PAIR, Place

NAMES = ["", "file", "folder", "binary.txt", "file/x", "nothing", "a/b/c/d", LONG, BYTES, "toy/smoke/moe/nan"]
ON_RUNS = {
    "generate": ["--prompt", "Ban"],
    "eval": ["--tasks", "copying"],
    "analyse": ["--only", "shared"],
    "explore": ["--no-browser"],
    "export-hf": ["out"],
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:10].encode("ascii", "replace").decode())
def test_what_is_no_run(place: Place, trained: Path, name: str) -> None:
    for verb, words in ON_RUNS.items():
        place.refused(command, verb, name, *words)
    place.refused(command, "import-hf", name, "out")
    place.refused(command, "analyse", "toy/smoke/moe/0", "--against", name)


NUMBERS = ["", "x", "null", "nan", "-1", "[1]", "9" * 5000]
UNDER = ["", "file/x", LONG]  # paths at which nothing can be made
OPTIONS: list[tuple[str, list[str], list[str]]] = [
    ("generate --prompt", [], ["", BYTES, "\ud800"]),
    ("generate --max-new-tokens", ["--prompt", "Ban"], [*NUMBERS, "1.5"]),
    ("generate --temperature", ["--prompt", "Ban"], [*NUMBERS[:-1], "inf", "1e400"]),
    ("generate --seed", ["--prompt", "Ban"], [*NUMBERS, "1.5", "9" * 30]),
    ("generate --prompts", [], ["folder", "nothing", "binary.txt", *UNDER]),
    ("generate --samples", ["--prompt", "Ban"], [*NUMBERS, "0", "1.5"]),
    ("generate --top-k", ["--prompt", "Ban"], [*NUMBERS, "0", "1.5"]),
    ("generate --top-p", ["--prompt", "Ban"], [*NUMBERS[:-1], "0", "inf", "1.5"]),
    ("generate --min-p", ["--prompt", "Ban"], [*NUMBERS[:-1], "inf", "1.5"]),
    ("generate --repetition-penalty", ["--prompt", "Ban"], [*NUMBERS[:-1], "0", "inf", "1e400"]),
    ("generate --stop", ["--prompt", "Ban"], [""]),
    ("generate --context", ["--prompt", "Ban"], [*NUMBERS, "0", "1", "1.5"]),
    ("generate --batch-size", ["--prompt", "Ban"], [*NUMBERS, "0", "1.5"]),
    ("eval --tasks", [], ["", ","]),
    ("eval --include-path", ["--tasks", "copying"], ["file", "nothing", *UNDER]),
    ("eval --limit", ["--tasks", "copying"], [*NUMBERS, "0", "1.5", "9" * 30]),
    ("eval --batch-size", ["--tasks", "copying"], [*NUMBERS, "0", "1.5", "9" * 30]),
    ("eval --out", ["--tasks", "copying"], ["folder", "nothing/x.json", *UNDER]),
    ("eval --text", ["--tasks", "copying"], ["x", "model=tiny", "data=null", "data=nothing", "data=files"]),
    ("analyse --out", ["--only", "shared"], ["file", *UNDER]),
    ("analyse --only", [], [",", "sharde", "null", BYTES]),
    ("analyse --text", ["--only", "shared"], ["x", "model=tiny", "data=null", "data=nothing", "data=files"]),
    ("serve --port", [], [*NUMBERS, "1.5", "70000"]),
    ("serve --rows", ["--port", "0"], [*NUMBERS, "0", "1.5"]),
    ("serve --waiting", ["--port", "0"], [*NUMBERS, "1.5"]),
    ("serve --context", ["--port", "0"], [*NUMBERS, "1", "1.5"]),
    ("explore --port", ["--no-browser"], [*NUMBERS, "0", "1.5", "70000"]),
]


@pytest.mark.parametrize(("option", "words", "values"), OPTIONS, ids=[option for option, _, _ in OPTIONS])
def test_options_of_commands_on_runs(
    place: Place, trained: Path, option: str, words: list[str], values: list[str]
) -> None:
    verb, flag = option.split()
    for value in values:
        place.refused(command, verb, "toy/smoke/moe/0", *words, f"{flag}={value}")


@pytest.mark.parametrize("out", ["file", "folder", "file/x", LONG, ""], ids=lambda out: out[:6])
def test_where_models_cannot_go(place: Place, trained: Path, out: str) -> None:
    place.refused(command, "export-hf", "toy/smoke/moe/0", out)
    place.refused(command, "import-hf", "folder", out)


ACCOUNT = [
    *([], ["sing"], ["account", "--nothing"], ["account", "--published", "model=v2"], ["account", "--hf="]),
    *(["account", f"--hf={path}"] for path in ("file", "folder", "nothing", "binary.txt", "file/x", LONG)),
    *(["account", f"--context={value}"] for value in (*NUMBERS, "0", "1.5", "9" * 30)),
    *(["account", f"--batch={value}"] for value in (*NUMBERS, "0", "1.5", "9" * 30)),
    *(["account", f"--kv-bits={value}"] for value in ("", "x", "0", "-1", "nan", "inf", "1e400")),
    *(["account", "--tokens=1e9", f"--mfu={value}"] for value in ("", "x", "0", "-1", "2", "nan", "inf")),
    *(["account", "--mfu=0.4", f"--tokens={value}"] for value in ("", "x", "0", "-1", "nan", "inf")),
    *(["account", "--mfu=0.4", "--tokens=1", f"--gpu-peak={value}"] for value in ("", "x", "0", "-1", "nan", "inf")),
    *(["account", "--mfu=0.4", "--tokens=1", f"--gpu-price={value}"] for value in ("", "x", "-1", "nan", "inf")),
    *(["account", word] for word in ("x", "=x", "model=null", "model=3", "optim.lr=1,2", "+x=1", "~seed", "hydra.x=1")),
    *(["account", word] for word in (f"model={BYTES}", f"{LONG}=1", "seed=" + "9" * 5000, "model.num_layers=1000000")),
]


@pytest.mark.parametrize("words", ACCOUNT, ids=lambda words: " ".join(words)[:40].encode("ascii", "replace").decode())
def test_accounts_and_verbs(place: Place, words: list[str]) -> None:
    place.refused(command, *words)


PATHS = ["account --hf=", "import-hf '' out", "import-hf folder ''", "export-hf toy/smoke/moe/0 ''"]
PATHS += [f"{verb} '' {' '.join(words)}" for verb, words in ON_RUNS.items()]
PATHS += [f"analyse toy/smoke/moe/0 {option}=" for option in ("--out", "--against")]
PATHS += [f"eval toy/smoke/moe/0 --tasks=copying {option}=" for option in ("--out", "--include-path")]


@pytest.mark.parametrize("words", PATHS)
def test_no_path_is_not_the_current_folder(place: Place, trained: Path, words: str) -> None:
    """Which holds a model of Hugging Face and a run: where "" is taken for it, the command succeeds."""
    shutil.copytree(open_run("toy/smoke/moe/0").folder, place.root, dirs_exist_ok=True)
    config = config_to_hf(dsv2.load(["model=v2_lite"]).model)
    (place.root / "config.json").write_text(json.dumps(config))
    assert command(["account", "--hf", "."]) == 0
    place.refused(command, *shlex.split(words))


# ---- Python ----------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[], Any]] = {
    "study None": lambda: study(None),  # type: ignore[arg-type]
    "study 3": lambda: study(3),  # type: ignore[arg-type]
    "study list": lambda: study(["aa"]),  # type: ignore[arg-type]
    "study path": lambda: study(Path("nothing.yaml")),
    "study seeds": lambda: study("aa", seeds=[0.5]),  # type: ignore[list-item]
    "study seeds number": lambda: study("aa", seeds=0),  # type: ignore[arg-type]
    "study seeds text": lambda: study("aa", seeds="01"),  # type: ignore[arg-type]
    "study seeds none": lambda: study("aa", seeds=[]),
    "study seeds true": lambda: study("aa", seeds=[True]),
    "study scale": lambda: study("aa", scale=None),  # type: ignore[arg-type]
    "study scales": lambda: study("aa", scale=["smoke"]),  # type: ignore[arg-type]
    "study overrides": lambda: study("aa", overrides="optim.lr=1"),
    "study overrides types": lambda: study("aa", overrides=[3]),  # type: ignore[list-item]
    "study arm": lambda: study("aa").with_arm("x", "optim.lr=1"),
    "study arm name": lambda: study("aa").with_arm(None, []),  # type: ignore[arg-type]
    "study workers": lambda: study("aa").run(workers=0),
    "study launcher": lambda: study("aa").run(launcher="cloud"),
    "results None": lambda: results(None),  # type: ignore[arg-type]
    "results scale": lambda: results("aa", None),  # type: ignore[arg-type]
    "results name": lambda: results("nothing"),
    "load text": lambda: dsv2.load("model=tiny"),
    "study overrides None": lambda: study("aa", overrides=None),  # type: ignore[arg-type]
    "study arm None": lambda: study("aa").with_arm("x", None),  # type: ignore[arg-type]
    "load None": lambda: dsv2.load(None),  # type: ignore[arg-type]
    "load number": lambda: dsv2.load(3),  # type: ignore[arg-type]
    "load mapping": lambda: dsv2.load({"optim.lr": 1}),  # type: ignore[arg-type]
    "load types": lambda: dsv2.load([3]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("name", CALLS)
def test_entries_of_python_name_what_is_wrong(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CALLS[name]()
    assert refused.value.key
    assert not Path(os.environ["DSV2_RUNS"]).exists()


@pytest.mark.parametrize("value", [None, 3, True, ["x"], {}], ids=str)
def test_values_of_another_type_are_named(value: Any) -> None:
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    for name, call in (
        ("RUN", lambda: dsv2.open_run(value)),
        ("path", lambda: dsv2.from_hf(value)),
        ("path", lambda: dsv2.to_hf(torch.nn.Linear(1, 1), value)),  # type: ignore[arg-type]
        ("model", lambda: dsv2.to_hf(value, "x")),
        ("model", lambda: dsv2.account(value)),
        ("model", lambda: dsv2.generate(value, tokens, max_new_tokens=1)),
    ):
        with pytest.raises(TypeError, match=rf"^{name}(=| has type ).*: must be [^\n]*\Z"):
            call()


def test_an_empty_path_is_not_the_current_folder() -> None:
    for call in (dsv2.from_hf, read_config):
        with pytest.raises(ValueError, match=r"^path='': must be a path; the current folder is '\.'$"):
            call("")


def test_a_study_may_be_a_path(tmp_path: Path) -> None:
    assert study(PAIR, seeds=[0]).arms.keys() == {"none", "expert"}
    assert math.isfinite(len(results(PAIR)))
