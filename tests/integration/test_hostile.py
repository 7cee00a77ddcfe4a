"""Files from strangers: nothing in them runs, nothing is written outside the store, no secret is stored.

SECURITY.md says what is promised. Each case is a study file, store, checkpoint, Hugging Face folder or corpus made by
somebody with bad intentions; each is refused with one line and exit status 2.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from ablations.report import main as report
from ablations.run import main as run
from ablations.studies import study
from ablations.trials.results import results
from dsv2.__main__ import main as dsv2
from dsv2.config import ConfigError
from dsv2.train import main as train
from dsv2.training import fit
from tests.references.twins import twin

SECRET = "hunter2-5f1be0c4"
PAIR = yaml.safe_load((Path(__file__).parents[1] / "ablations" / "pair.yaml").read_text())


class Payload:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        import hostile_payload  # type: ignore[import-not-found]

        return hostile_payload.run, ()


class Trap:
    """A working directory, a folder `outside` that nothing may change, and a mark that a payload would leave."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.root, self.capsys, self.patch = root, capsys, patch
        self.here, self.outside, self.mark = root / "here", root / "outside", root / "ran"
        self.runs = root / "here" / "runs"

    def text(self, text: str) -> str:
        """Fill in where things lie."""
        return text.replace("OUTSIDE", str(self.outside)).replace("HERE", str(self.here))

    def file(self, content: str | bytes | dict[str, Any], name: str = "evil.yaml") -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(self.text(content if isinstance(content, str) else yaml.safe_dump(content)))
        return path

    def call(self, entry: Callable[..., int], *words: object) -> int:
        if entry is not train:
            return entry([*map(str, words)])
        self.patch.setattr(sys, "argv", ["dsv2.train", *map(str, words)])
        try:
            train()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def refused(self, entry: Callable[..., int], *words: object) -> str:
        """Call a command that must refuse; return its line."""
        before = self.files(store=False)
        self.capsys.readouterr()
        status = self.call(entry, *words)
        said = self.capsys.readouterr()
        self.nothing_happened(before)
        lines = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
        assert (status, len(lines)) == (2, 1), (said.out, said.err)
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert SECRET not in said.out + said.err
        assert len(said.err) < 2000
        return lines[0]

    def nothing_happened(self, before: dict[Path, bytes]) -> None:
        assert not self.mark.exists(), "code of the file ran"
        assert self.files(store=False) == before, "something was written outside the store"
        kept = [path for path, data in self.files(store=True).items() if SECRET.encode() in data]
        assert not kept, "the secret was stored"

    def files(self, *, store: bool) -> dict[Path, bytes]:
        """Every file in the store, or every file outside it."""
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return {
            path: path.read_bytes()
            for path in files
            if path.is_relative_to(self.runs) == store and path.suffix != ".pyc"
        }


@pytest.fixture
def trap(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Trap:
    trap = Trap(tmp_path / "trap", capsys, monkeypatch)
    for folder in (trap.here, trap.outside, trap.root / "modules"):
        folder.mkdir(parents=True)
    (trap.outside / "secret.txt").write_text(SECRET)
    (trap.outside / "secret.json").write_text(json.dumps({"key": SECRET}))
    (trap.root / "modules" / "hostile_payload.py").write_text(
        f"def run(*_, **__):\n    open({str(trap.mark)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(str(trap.root / "modules"))
    monkeypatch.delitem(sys.modules, "hostile_payload", raising=False)
    monkeypatch.setenv("DSV2_RUNS", str(trap.runs))
    monkeypatch.setenv("DSV2_SECRET", SECRET)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which `train` sets
    monkeypatch.setattr(fit, "fit", lambda *_: pytest.fail("a run started"))
    monkeypatch.chdir(trap.here)
    return trap


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


def bomb(merge: str = "") -> str:
    """Nine of nine of nine ..., in a kilobyte."""
    first = "a0: &a0 {x: 1}\n" if merge else "a0: &a0 [x, x]\n"
    each = "a{0}: &a{0} {{<<: [{1}]}}\n" if merge else "a{0}: &a{0} [{1}]\n"
    return first + "".join(each.format(n, ", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 12))


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


# ---- stores ----------------------------------------------------------------------------------------------------------


def stored(trap: Trap) -> Path:
    """The folder of a study of two trials that was started."""
    planned = study(str(trap.file(PAIR, "good.yaml")), seeds=[0])
    planned.remember()
    for trial in planned.trials:
        trial.folder.mkdir(parents=True)
    unsealed(planned.folder / "study.json")
    return planned.folder.resolve()


def unsealed(path: Path) -> None:
    """Remove the checksums from a file, as somebody would who changes what they cover."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps({key: value[key] for key in value if key not in ("sha256", "files")}))


def record(**changes: Any) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        path = folder / "study.json"
        path.write_text(trap.text(json.dumps(json.loads(path.read_text()) | changes)))

    return change


def definition(**changes: Any) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        path = folder / "study.yaml"
        path.write_text(trap.text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes)))

    return change


def link(name: str, target: str = "OUTSIDE") -> Callable[[Trap, Path], None]:
    """Put a symbolic link in the store; TRIAL stands for the folder of the trial of `expert`."""

    def change(trap: Trap, folder: Path) -> None:
        trials = {arm: name for arm, _, _, name in json.loads((folder / "study.json").read_text())["trials"]}
        path = folder / name.replace("TRIAL", f"trials/{trials['expert']}")
        if path.is_dir():
            path.rename(trap.here / "moved")
        path.unlink(missing_ok=True)
        path.symlink_to(trap.text(target))

    return change


def raw(name: str, content: bytes) -> Callable[[Trap, Path], None]:
    return lambda trap, folder: (folder / name).write_bytes(content) and None


STORES: dict[str, Callable[[Trap, Path], None]] = {
    "overrides of Hydra": record(overrides=["+hydra.callbacks.x._target_=hostile_payload.run"]),
    "overrides that read the environment": record(overrides=["logger.wandb.project=${oc.env:DSV2_SECRET}"]),
    "overrides that are no words": record(overrides=[{"hydra": 1}]),
    "overrides for the launcher": record(overrides=["launcher=slurm"]),
    "trial above": record(trials=[["none", 0, None, "../../../../outside"], ["expert", 0, None, "x"]]),
    "trial elsewhere": record(trials=[["none", 0, None, "OUTSIDE"], ["expert", 0, None, "x"]]),
    "trials that are none": record(trials=[["none", 0, None, 7]]),
    "trials too deep": raw("study.json", b'{"trials": ' + b"[" * 100_000),
    "source with control characters": record(source="\x1b[2J"),
    "source that is none": record(source=["a", "b"]),
    "definition of Hydra": definition(base=["++hydra.run.dir=OUTSIDE/made"]),
    "definition of another study": definition(name="aa"),
    "definition above": definition(name="../../outside"),
    "definition that runs": raw("study.yaml", b"!!python/object/apply:hostile_payload.run []"),
    "definition that grows": raw("study.yaml", bomb(merge="<<").encode()),
}
LINKS = {
    "study elsewhere": link(""),
    "report elsewhere": link("report"),
    "trials elsewhere": link("trials"),
    "trial is a link": link("TRIAL"),
    "log is a link": link("TRIAL/log.txt", "OUTSIDE/secret.txt"),
    "lock is a link": link("TRIAL/lock", "OUTSIDE/secret.txt"),
    "metrics are a link": link("TRIAL/metrics.jsonl", "OUTSIDE/new.jsonl"),
    "result is a link": link("TRIAL/result.json", "OUTSIDE/secret.json"),
    "checkpoints elsewhere": link("TRIAL/checkpoints"),
    "W&B elsewhere": link("TRIAL/wandb"),
    "link above": link("TRIAL/wandb", "../../../../../../outside"),
    "link to itself": link("TRIAL/wandb", "wandb"),
}


@pytest.mark.parametrize("kind", STORES | LINKS)
def test_a_store_is_read_and_written_within(trap: Trap, kind: str) -> None:
    folder = stored(trap)
    (STORES | LINKS)[kind](trap, folder)
    trap.refused(report, "sweep=good")
    if kind in LINKS:  # the rest is written anew by the same command
        trap.refused(run, "sweep=good.yaml", "seeds=[0]")
    if kind in LINKS and kind != "report elsewhere":  # which a trial does not write
        trap.refused(train, "study=good.yaml", "arm=expert")


def test_links_within_a_store_are_its_own(trap: Trap) -> None:
    """A store on another disk, and the links that W&B makes."""
    trap.runs.parent.joinpath("disk").mkdir()
    trap.runs.symlink_to(trap.here / "disk")
    folder = stored(trap)
    trial = next((folder / "trials").iterdir())
    (trial / "wandb").mkdir()
    (trial / "wandb" / "latest-run").symlink_to("offline-run-1")
    assert trap.call(run, "sweep=good.yaml", "seeds=[0]", "dry_run=true") == 0
    assert len(results("good")) == 2


def test_a_report_quotes_what_a_study_says(trap: Trap) -> None:
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    arms = {name: arm | {"about": script} for name, arm in PAIR["arms"].items()}
    node = PAIR | {"name": "good", "question": script, "prediction": script, "published": script, "arms": arms}
    study(node, seeds=[0]).remember()
    assert trap.call(report, "sweep=good") == 0
    page = (trap.runs / "good" / "smoke" / "report" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


# ---- runs and their checkpoints --------------------------------------------------------------------------------------

TRIAL = "toy/smoke/moe/0"


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
    import hashlib

    def change(trap: Trap, trial: Path) -> None:
        path = trial / "checkpoints" / name
        write(path)
        entry = {"step": 12, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        (trial / "checkpoints" / "manifest.json").write_text(json.dumps({name: entry}))

    return change


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file)


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


@pytest.fixture
def trial(trap: Trap, trained_once: Path) -> Path:
    """A trained run in the store of the trap."""
    import shutil

    shutil.copytree(trained_once, trap.runs)
    (folder,) = (trap.runs / "toy" / "smoke" / "trials").iterdir()
    unsealed(folder / "result.json")
    return folder


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
            assert name not in unsafe or path.name == "__main__.py", f"{path}: {name}"
            assert name.rpartition(".")[2] not in unsafe - {"eval"}, f"{path}: {name}"
            if name == "torch.load":
                assert words.get("weights_only") == "True", f"{path}: {name}"
            if name in ("np.load", "numpy.load"):
                assert words.get("allow_pickle") == "False", f"{path}: {name}"


# ---- Hugging Face folders --------------------------------------------------------------------------------------------


def saved_twin(trap: Trap) -> Path:
    folder = trap.here / "hf"
    twin().save_pretrained(folder)
    return folder


def keys(**changes: Any) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def sharded(name: str) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        (folder / "model.safetensors").rename(trap.outside / "model.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            trap.text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        )

    return change


def only_pickle(trap: Trap, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, folder / "pytorch_model.bin")


def is_link(name: str, target: str) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(trap.text(target))

    return change


FOLDERS: dict[str, Callable[[Trap, Path], None]] = {
    "only a pickle": only_pickle,
    "pickle under another name": lambda trap, folder: pickled(folder / "model.safetensors"),
    "zip under another name": lambda trap, folder: torch.save({"x": Payload()}, folder / "model.safetensors"),
    "header that is too long": lambda trap, folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64) and None,
    "tensors of strangers": lambda trap, folder: save_file({"x": torch.ones(1)}, folder / "model.safetensors"),
    "shard above": sharded("../outside/model.safetensors"),
    "shard elsewhere": sharded("OUTSIDE/model.safetensors"),
    "shard is the folder": sharded(".."),
    "another type with code": keys(model_type="evil", auto_map={"AutoModel": "hostile_payload.run"}),
    "weights are a link": is_link("model.safetensors", "OUTSIDE/secret.txt"),
    "config is a link": is_link("config.json", "OUTSIDE/secret.json"),
    "tokenizer is a link": is_link("tokenizer.json", "OUTSIDE/secret.json"),
    "settings are a link": is_link("tokenizer_config.json", "OUTSIDE/secret.json"),
    "generation is a link": is_link("generation_config.json", "../outside/secret.json"),
    "generation is no JSON": lambda trap, folder: (folder / "generation_config.json").write_bytes(b"x") and None,
    "config is too deep": lambda trap, folder: (folder / "config.json").write_text("[" * 100_000) and None,
    "tokenizer is none": lambda trap, folder: (folder / "tokenizer.json").write_text('{"model": 1}') and None,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hugging_face_folder_is_its_own(trap: Trap, kind: str) -> None:
    folder = saved_twin(trap)
    FOLDERS[kind](trap, folder)
    trap.refused(dsv2, "import-hf", folder, "runs/imported")
    assert not (trap.runs / "imported").exists()


def test_code_beside_weights_is_ignored(trap: Trap) -> None:
    """A cache of the Hub, which links into its `blobs`, with a model that brings Python along."""
    folder = saved_twin(trap)
    keys(auto_map={"AutoModel": "modeling_evil.Evil"}, architectures=["Evil"])(trap, folder)
    (folder / "modeling_evil.py").write_text("import hostile_payload\nhostile_payload.run()\n")
    (trap.here / "cache" / "snapshots").mkdir(parents=True)
    (trap.here / "cache" / "blobs").mkdir()
    (trap.here / "cache" / "snapshots" / "1").mkdir()
    for file in folder.iterdir():
        file.rename(trap.here / "cache" / "blobs" / file.name)
        (trap.here / "cache" / "snapshots" / "1" / file.name).symlink_to(f"../../blobs/{file.name}")
    before = trap.files(store=False)
    assert trap.call(dsv2, "import-hf", trap.here / "cache" / "snapshots" / "1", "runs/imported") == 0
    trap.nothing_happened(before)
    assert not [*(trap.runs / "imported").glob("*.py")]


# ---- corpora ---------------------------------------------------------------------------------------------------------


def corpus(trap: Trap, **files: str | bytes) -> Path:
    folder = trap.here / "texts"
    for number in range(4):
        trap.file(f"text {number} " * 200, f"texts/{number}.txt")
    for name, content in files.items():
        trap.file(content, f"texts/{name.replace('_', '.')}")
    return folder


def linked_text(trap: Trap) -> list[str]:
    (corpus(trap) / "z.txt").symlink_to(trap.outside / "secret.txt")
    return ["data=files", "data.path=texts/*.txt"]


def linked_folder(trap: Trap) -> list[str]:
    (corpus(trap) / "more").symlink_to(trap.outside)
    return ["data=files", "data.path=texts/*/*.txt"]


def deep_json(trap: Trap) -> list[str]:
    corpus(trap, a_jsonl='{"text": ' + "[" * 100_000)
    return ["data=files", "data.path=texts/*.jsonl"]


def pickled_parquet(trap: Trap) -> list[str]:
    corpus(trap, a_parquet=b"PAR1" + pickle.dumps(1) + b"PAR1")
    return ["data=files", "data.path=texts/*.parquet"]


def unpickled(trap: Trap) -> list[str]:
    pickled(corpus(trap) / "a.pkl")
    return ["data=files", "data.path=texts/*"]


def scripted(trap: Trap) -> list[str]:
    corpus(trap, texts_py="import hostile_payload\nhostile_payload.run()\n")
    return ["data=huggingface", "data.path=texts"]


def leading_out(trap: Trap) -> list[str]:
    corpus(trap, README_md="---\nconfigs:\n- config_name: default\n  data_files: OUTSIDE/secret.txt\n---\n")
    return ["data=huggingface", "data.path=texts"]


def linked_dataset(trap: Trap) -> list[str]:
    linked_text(trap)
    return ["data=huggingface", "data.path=texts"]


CORPORA = [linked_text, linked_folder, deep_json, pickled_parquet, unpickled, scripted, leading_out, linked_dataset]


@pytest.mark.parametrize("make", CORPORA)
def test_a_corpus_is_the_text_in_its_folder(trap: Trap, quick: list[str], make: Callable[[Trap], list[str]]) -> None:
    trap.patch.setenv("HF_HOME", str(trap.runs / "hub"))
    trap.refused(train, *quick, *make(trap))


@pytest.mark.parametrize("dtype", ["O", "object", "|V8", "f8", 7, None])
def test_a_prepared_corpus_holds_token_ids(trap: Trap, trial: Path, dtype: Any) -> None:
    """Of the dtype `object`, the bytes of a file would be taken for addresses in memory."""
    from dsv2.data.store import find_store

    (folder,) = (trap.runs / ".data").glob("*/")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"dtype": dtype}))
    assert find_store(manifest["identity"], [trap.runs], 300) is None


def test_the_tables_of_a_prepared_corpus_are_no_pickles(trap: Trap, trial: Path) -> None:
    import hashlib

    from dsv2.data.store import find_store

    (folder,) = (trap.runs / ".data").glob("*/")
    np.savez(folder / "documents.npz", train_starts=np.array([Payload()], dtype=object))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["documents.npz"] = hashlib.sha256((folder / "documents.npz").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError):  # noqa: PT011
        find_store(manifest["identity"], [trap.runs], 300)
    assert not trap.mark.exists()


def test_promises_are_written_down() -> None:
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    for word in ("weights_only=True", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "WANDB_SWEEP_ID", "--include-path"):
        assert word in text, word
