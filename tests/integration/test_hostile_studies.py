"""Study files and names from strangers.

SECURITY.md says what is promised for them and for the other hostile files. Each is refused with one line and exit
status 2; nothing in them runs, nothing is written outside the store, no secret is stored.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablations.report import main as report
from ablations.run import main as run
from ablations.studies import study
from ablations.trials.results import results
from dsv2.config import ConfigError
from dsv2.train import main as train
from dsv2.training import fit
from tests.references.traps import PAIR, SECRET, Payload, Trap, bomb

# ---- study files -----------------------------------------------------------------------------------------------------

WORDS = [
    "+hydra.callbacks.x._target_=hostile_payload.run",
    "++hydra.callbacks={x: {_target_: hostile_payload.run}}",
    "++hydra.run.dir=OUTSIDE/made",
    "hydra.run.dir=OUTSIDE/made",
    "++hydra.sweep.dir=OUTSIDE/made",
    "++hydra.output_subdir=OUTSIDE/made",
    "++hydra.job.chdir=true",
    "+hydra.job.env_set.TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'",
    "++hydra.searchpath=['file://HERE']",
    "hydra/launcher=basic",
    "+hydra/sweeper=basic",
    "model@hydra.callbacks=tiny",
    "model/attention@_global_=mla",
    "--config-dir=HERE",
    "--multirun",
    "-m",
    "~logger",
    "~model.norm_eps",
    "sweep=aa",
    "wandb=aa",
    "+presets=transformer",
    "model=../../../here/evil",
    "model.dim=16,32",
    "model.dim=choice(16,32)",
    "model.dim=glob(*)",
    "model.attention._target_=os.system",
    "model.attention._target_=hostile_payload.run",
    "model.attention._target_=dsv2.config.importlib.import_module",
    "model.attention._target_=dsv2..x.Config",
    "model.attention={_target_: pandas.read_pickle, filepath_or_buffer: HERE/evil.pkl}",
    "++_target_=hostile_payload.run",
    "+callbacks.x._target_=hostile_payload.run",
    "logger.wandb.project=${oc.env:DSV2_SECRET}",
    "logger.wandb.project='a ${oc.env:DSV2_SECRET} b'",
    r"logger.wandb.project=$\{oc.env:DSV2_SECRET\}",
    "logger.wandb.project=${oc.env:NOTHING,${oc.env:DSV2_SECRET}}",
    "logger.wandb.project=${oc.decode:${oc.env:DSV2_SECRET}}",
    "logger.wandb.project=${oc.select:hydra.run.dir}",
    "logger.wandb.project=${hydra:runtime.cwd}",
    "logger.wandb.project=${hydra.runtime.cwd}",
    "logger.wandb.project=${...hydra.runtime.cwd}",
    "logger.wandb.project=${times:hydra.job.num,2}",
    "logger.wandb.project=${times:${oc.env:DSV2_SECRET},2}",
    "+model.shape.x=${oc.env:DSV2_SECRET}",
    '+model.shape.x={a: ["${oc.env:DSV2_SECRET}"]}',
    "study=../../x",
    "scale=../../x",
    "probe=/abs",
]


PLACES = ["base", "data", "scales", "arm", "arm's scales", "dictionary", "train", "sweep"]


@pytest.mark.parametrize(
    ("place", "word"),
    [*((place, word) for place in ("train", "sweep") for word in WORDS), *((place, WORDS[0]) for place in PLACES[:-2])],
)
def test_a_word_of_a_study_sets_keys_of_the_config_and_nothing_else(trap: Trap, place: str, word: str) -> None:
    pickle.dump(Payload(), (trap.here / "evil.pkl").open("wb"))
    word = trap.text(word)
    node: dict[str, Any] = yaml.safe_load(yaml.safe_dump(PAIR))
    if place in ("base", "dictionary", "train"):
        node["base"].append(word)
    elif place == "data":
        node["data"] = [word]
    elif place == "scales":
        node["scales"] = {"smoke": [word]}
    elif place == "arm":
        node["arms"]["expert"]["overrides"].append(word)
    elif place == "arm's scales":
        node["arms"]["expert"]["scales"] = {"smoke": [word]}
    if place == "sweep":  # an agent passes the parameters of a W&B sweep file on
        trap.patch.setenv("WANDB_SWEEP_ID", "x")
        trap.refused(train, word)
    elif place == "dictionary":
        before = trap.files(store=False)
        with pytest.raises(ConfigError):
            study(node | {"name": "evil"})
        trap.nothing_happened(before)
    elif place == "train":
        trap.refused(train, f"study={trap.file(node)}", "arm=expert")
    else:
        trap.refused(run, f"sweep={trap.file(node)}", "dry_run=true")


def test_the_users_own_command_line_is_hydras(trap: Trap) -> None:
    """What a file may not do, its user may; and what studies and sweeps do passes."""
    trained = []
    trap.patch.setattr(fit, "fit", lambda run, folder: trained.append(run))
    mine = ["trainer.accelerator=cpu", "hydra.job.name=mine", "logger.wandb.project=${oc.env:DSV2_SECRET}"]
    path = trap.file(PAIR)
    assert trap.call(train, f"study={path}", "arm=expert", *mine) == 0
    trap.patch.setenv("WANDB_SWEEP_ID", "x")
    theirs = ["scale=smoke", "seed=1", "probe=null", "logger.wandb.mode=online"]
    assert trap.call(train, f"study={path}", "arm=expert", *theirs) == 0
    assert [run.logger.wandb.project for run in trained] == [SECRET, "dsv2"]


def changed(**changes: Any) -> str:
    return yaml.safe_dump(PAIR | changes)


ONE = PAIR["arms"]["none"]
FILES: dict[str, str | bytes] = {
    "python object": b"question: !!python/object/apply:hostile_payload.run []\n",
    "python name": b"question: !!python/name:os.system\n",
    "python module": b"!!python/module:hostile_payload {}\n",
    "unknown tag": b"question: !payload x\n",
    "pickle": pickle.dumps({"question": "no YAML"}),
    "aliases of aliases": bomb() + changed(),
    "merges of merges": bomb(merge="<<") + changed(),
    "contains itself": "question: &a [*a]\n",
    "deep": "question: " + "[" * 100_000,
    "deep mapping": "question: " + "{a: " * 1000 + "1" + "}" * 1000,
    "huge": "question: " + "x" * 3_000_000,
    "huge number": changed().replace("seeds: 2", "seeds: " + "9" * 5000),
    "terminal": changed(question="\x1b]0;owned\x07 what?"),
    "right to left": changed(question="what\u202e?"),
    "null byte": b"question: a\0b\n",
    "name up": changed(name="../../outside/x"),
    "name absolute": changed(name="/tmp/x"),
    "name hidden": changed(name=".data"),
    "name is a folder above": changed(name=".."),
    "name with line": changed(name="x\ny"),
    "arm name": changed(arms={"none": ONE, "../../x": PAIR["arms"]["expert"]}),
    "arm name with words": changed(arms={"none": ONE, "x hydra.run.dir=OUTSIDE": PAIR["arms"]["expert"]}),
    "grid key": changed(arms=None, baseline="hydra.job.num1", grid={"hydra.job.num": [1, 2]}),
    "grid key added": changed(arms=None, grid={"+hydra.callbacks.x._target_": ["hostile_payload.run", "os.system"]}),
    "grid level": changed(arms=None, grid={"logger.wandb.project": ["${oc.env:DSV2_SECRET}", "x"]}),
    "adjusts": changed(adjust={"norm_eps=${oc.env:DSV2_SECRET},": 1}, equal=["active_params"]),
    "shared from above": changed(defaults=["/../../here/other"]),
    "shared of Hydra": changed(defaults=["override hydra/launcher: basic"]),
    "shared elsewhere": changed(defaults=["file://HERE"]),
    "probe from above": changed(probes=["../sweep/aa"]),
    "scale from above": changed(scales={"../../x": []}),
    "size from above": changed(arms={"none": ONE | {"size": "../x"}, "expert": PAIR["arms"]["expert"]}),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("entry", [run, report, train], ids=["run", "report", "train"])
def test_a_study_file_is_plain_values_under_a_plain_name(trap: Trap, entry: Callable[..., int], kind: str) -> None:
    words = {run: ["dry_run=true"], report: [], train: ["arm=expert"]}[entry]
    path = trap.file(FILES[kind])
    trap.refused(entry, f"{'study' if entry is train else 'sweep'}={path}", *words)


# ---- names -----------------------------------------------------------------------------------------------------------

NAMES = ["../../x", "/abs", "..", ".", "a/b", ".data", "x\x1b[2J", "a b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_path(trap: Trap, name: str) -> None:
    """Of studies and scales, where they become folders."""
    for word in (f"study='{name}'", f"scale='{name}'"):
        trap.refused(train, "study=mine", "scale=smoke", word, "trainer.accelerator=cpu")
    for entry in (run, report):
        trap.refused(entry, f"sweep={name}")
        trap.refused(entry, "sweep=aa", f"scale={json.dumps(name)}")
    for wanted in ((name, "smoke"), ("aa", name)):
        with pytest.raises(ConfigError):
            results(*wanted)


@pytest.mark.parametrize("path", ["/x/...yaml", "../...yaml", "OUTSIDE/.x.yaml", "OUTSIDE/nothing.yaml"])
def test_the_path_of_a_study_gives_it_a_name(trap: Trap, path: str) -> None:
    for entry in (run, report):
        trap.refused(entry, f"sweep={trap.text(path)}")


def test_promises_are_written_down() -> None:
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    for word in ("weights_only=True", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "WANDB_SWEEP_ID", "--include-path"):
        assert word in text, word
