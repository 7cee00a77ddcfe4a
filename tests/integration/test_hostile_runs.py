"""Runs and checkpoints from strangers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ablations.run import main as run
from dsv2.__main__ import main as dsv2
from dsv2.train import main as train
from tests.references.traps import TRIAL, Payload, Trap, bomb, pickled, raw, saved_twin


def config(**changes: Any) -> Callable[[Trap, Path], None]:
    """Change the stored config; keys are dotted."""

    def change(trap: Trap, trial: Path) -> None:
        values = yaml.safe_load((trial / "config.yaml").read_text())
        for key, value in changes.items():
            node, *parts = values, *key.split("__")
            for part in parts[:-1]:
                node = node[part]
            node[parts[-1]] = value
        (trial / "config.yaml").write_text(trap.text(yaml.safe_dump(values)))

    return change


def checkpoint(write: Callable[[Path], object], name: str = "step-000000012.ckpt") -> Callable[[Trap, Path], None]:
    """Put a file in the place of the newest checkpoint, with a manifest that fits it."""

    def change(trap: Trap, trial: Path) -> None:
        path = trial / "checkpoints" / name
        write(path)
        entry = {"step": 12, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        (trial / "checkpoints" / "manifest.json").write_text(json.dumps({name: entry}))

    return change


def entry(name: str) -> Callable[[Trap, Path], None]:
    return lambda trap, trial: (
        trial.joinpath("checkpoints", "manifest.json").write_text(
            trap.text(json.dumps({name: {"step": 99, "sha256": "0" * 64}}))
        )
        and None
    )


RUNS: dict[str, Callable[[Trap, Path], None]] = {
    "config that runs": raw("config.yaml", b"model: !!python/object/apply:hostile_payload.run []"),
    "config that grows": raw("config.yaml", bomb(merge="<<").encode() + b"model: 1"),
    "config too deep": raw("config.yaml", b"model: " + b"[" * 100_000),
    "config of another class": config(model___target_="hostile_payload.run"),
    "config of a function": config(model___target_="dsv2.train.main"),
    "config of a module": config(model___target_="dsv2.config.importlib.Config"),
    "config of no name": config(model___target_="dsv2.\0.Config"),
    "config of a missing package": config(model___target_="dsv2.explore.nothing.here.Config"),
    "attention of another class": config(model__attention___target_="os.system"),
    "pickle": checkpoint(pickled),
    "pickle in a zip": checkpoint(lambda path: torch.save({"state_dict": Payload()}, path)),
    "old format": checkpoint(
        lambda path: torch.save({"state_dict": Payload()}, path, _use_new_zipfile_serialization=False)
    ),
    "whole model": checkpoint(lambda path: torch.save(torch.nn.Linear(1, 1), path)),
    "list": checkpoint(lambda path: torch.save([1, 2], path)),
    "checkpoint without weights": checkpoint(lambda path: torch.save({"global_step": 12}, path)),
    "weights that are none": checkpoint(lambda path: torch.save({"state_dict": {"model.norm": "x"}}, path)),
    "truncated": checkpoint(lambda path: path.write_bytes(b"PK\x03\x04")),
    "checkpoint elsewhere": entry("../../../../../../outside/secret.json"),
    "checkpoint at an absolute path": entry("OUTSIDE/secret.json"),
    "checkpoint of no step": checkpoint(lambda path: torch.save({"state_dict": {}}, path), name="last.ckpt"),
    "tokenizer is a link": lambda trap, trial: swapped(trial / "tokenizer.json", trap.outside / "secret.json"),
    "checkpoints are a link": lambda trap, trial: swapped(trial / "checkpoints", trap.outside),
    "analysis is a link": lambda trap, trial: (trial / "analysis").symlink_to(trap.outside),
}


def swapped(path: Path, target: Path) -> None:
    path.rename(path.parents[5] / f"was-{path.name}")
    path.symlink_to(target)


COMMANDS = {
    "generate": ["generate", TRIAL, "--prompt", "x"],
    "analyse": ["analyse", TRIAL],
    "export": ["export-hf", TRIAL, "runs/exported"],
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *(("analyse", kind) for kind in RUNS),
        *((name, kind) for name in ("generate", "export") for kind in list(RUNS)[::4]),
    ],
)
def test_a_run_is_tensors_and_plain_values(trap: Trap, trial: Path, command: str, kind: str) -> None:
    RUNS[kind](trap, trial)
    trap.refused(dsv2, *COMMANDS[command])


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_the_environment_cannot_allow_pickles(trap: Trap, trial: Path, quick: list[str], value: str) -> None:
    trap.patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    for words in COMMANDS.values():
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in trap.refused(dsv2, *words)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in trap.refused(train, *quick)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in trap.refused(run, "sweep=aa")
    folder = saved_twin(trap)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in trap.refused(dsv2, "import-hf", folder, "runs/imported")
    trap.patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    assert trap.call(dsv2, *COMMANDS["generate"]) == 0


def test_weights_are_read_in_one_place() -> None:
    """Every `torch.load` and `np.load` says that it takes no pickles; nothing else of the kind is called."""
    import ast

    sources = Path(__file__).parents[2]
    unsafe = {"read_pickle", "full_load", "unsafe_load", "unsafe_load_all", "eval", "exec", "system"}
    for path in [*(sources / "src").rglob("*.py"), *(sources / "ablations").rglob("*.py")]:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
            if path.name == "sandbox_server.py":  # what it is for, in a process of its own under limits
                continue
            assert name not in unsafe or path.name == "__main__.py", f"{path}: {name}"
            assert name.rpartition(".")[2] not in unsafe - {"eval"}, f"{path}: {name}"
            if name == "torch.load":
                assert words.get("weights_only") == "True", f"{path}: {name}"
            if name in ("np.load", "numpy.load"):
                assert words.get("allow_pickle") == "False", f"{path}: {name}"
