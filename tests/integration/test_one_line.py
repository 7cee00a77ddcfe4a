"""A mistake ends a command with one line that begins with `error: `, exit status 2, and nothing written.

Every command, option and key of the config is given what it cannot use: null, nothing, the wrong type, numbers out of
range, lists, unknown names, paths that cannot be used, and bytes that are not UTF-8.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsv2
from ablations import results, study
from ablations.report import main as report
from ablations.run import main as run
from ablations.wandb_sweeps import main as sweeps
from ablations.wandb_workspace import main as workspace
from dsv2.__main__ import main as command
from dsv2.composition import compose, override
from dsv2.config import ConfigError
from dsv2.train import main as train
from dsv2.training import fit

PAIR = Path(__file__).parents[1] / "ablations" / "pair.yaml"
LONG, BYTES = "x" * 5000, "\udcff"  # the latter is how Python passes on a byte that is not UTF-8
Entry = Callable[..., Any]


class Place:
    """A working directory with a file, a folder and a store, in which commands are called."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.root, self.capsys, self.patch = root, capsys, patch
        (root / "folder").mkdir(parents=True)
        (root / "folder" / "inside.txt").write_text("text")
        (root / "file").write_text("text")
        (root / "binary.txt").write_bytes(b"\xff\xfe\x00")
        (root / "study.yaml").write_text(PAIR.read_text())
        patch.chdir(root)
        patch.setenv("HYDRA_FULL_ERROR", "0")  # which `train` sets
        patch.setattr(fit, "fit", lambda *_: pytest.fail("a run started"))

    def call(self, entry: Entry, *words: str) -> int:
        if entry is train:
            self.patch.setattr(sys, "argv", ["dsv2.train", *words])
        try:
            return int(entry() if entry is train else entry([*words]))
        except SystemExit as end:
            return int(end.code or 0)

    def refused(self, entry: Entry, *words: str) -> str:
        """Call a command that must refuse; return its line."""
        before = self.files()
        self.capsys.readouterr()
        status = self.call(entry, *words)
        said = self.capsys.readouterr()
        lines = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
        assert (status, len(lines)) == (2, 1), (status, said)
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert len(lines[0]) < 1500
        assert "Traceback" not in said.out + said.err
        assert self.files() == before
        return lines[0]

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path / "here", capsys, monkeypatch)


# ---- the config ------------------------------------------------------------------------------------------------------

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
    *("trainer.accelerator=gpu", "trainer.devices=2", "trainer.accelerator=null"),
    *("seed=-1", "seed=null", "seed=" + "9" * 30, "seed=" + "9" * 5000, "study=a/b", "study=''"),
    *("logger.wandb.project=a/b", "logger.wandb.project=''", "logger.wandb=null", "model.num_layers=100000"),
    *("~model", "~nothing", "+x=1", "study=study.yaml arm=nothing", "study=nothing.yaml arm=none", "study=file arm=a"),
    *("study=folder arm=none", "study=study.yaml arm=none seed=x", "study=study.yaml arm=none scale=smok"),
    "study=study.yaml arm=none probe=recal",
]


@pytest.mark.parametrize("words", TRAIN, ids=lambda words: words[:40].encode("ascii", "replace").decode())
def test_training(place: Place, words: str) -> None:
    def devices(run: Any, folder: Path) -> None:  # what `fit` checks first
        from dsv2.training.machine import require_accelerator
        from dsv2.training.processes import joined

        with joined(run.trainer):
            require_accelerator(run.trainer.accelerator)
        pytest.fail("a run started")

    place.patch.setattr(fit, "fit", devices)
    place.patch.setattr("torch.cuda.is_available", lambda: False)
    place.refused(train, *words.split())


# ---- studies ---------------------------------------------------------------------------------------------------------

STUDY = "sweep=study.yaml"
REQUESTS = [
    *([], ["x"], ["--flag"], ["=x"], ["sweep"], ["sweep="], ["study=aa"], ["sweep=null"], ["sweep=[1,2]"]),
    *([f"sweep={name}"] for name in ("balance_loses", "file", "folder", "nothing.yaml", BYTES, LONG, "..", "a b")),
    *([f"sweep={name}.yaml"] for name in (LONG, "file/x", BYTES)),
    *([STUDY, f"scale={scale}"] for scale in ("", "smok", "3", "[]", "[smoke,smoke]", "{a: 1}", "nan", LONG, BYTES)),
    *([STUDY, f"seeds={seeds}"] for seeds in ("", "0", "nan", "[]", "[0.5]", "[-1]", "[0,0]", "[null]", "[true]")),
    *([STUDY, f"seeds={seeds}"] for seeds in ("x", "{a: 1}", "[0", "[[0]]", "[" + "9" * 30 + "]", "9" * 5000)),
    *([STUDY, f"workers={workers}"] for workers in ("", "0", "-1", "1.5", "nan", "two", "[1]", "9" * 30, "9" * 5000)),
    *([STUDY, f"launcher={name}"] for name in ("", "lokal", "null", "3", "[local]")),
    *([STUDY, f"dry_run={value}"] for value in ("", "maybe", "1", "null", "[true]")),
    *([STUDY, word] for word in ("dryrun=true", "worker=1", "seed=0", "seed=null", "arm=none", "scales=smoke")),
    *([STUDY, word] for word in ("benchmarks=null", "model=3", "model=null", "loss.expert=0", "optim.lr=1,2")),
    *([STUDY, word] for word in ("trainer.accelerator=gpu", "trainer.devices=2", "+x=1", "~model", "model.dim")),
    *([STUDY, STUDY], [STUDY, "dry_run=true", "dry_run=true"]),
]


@pytest.mark.parametrize("words", REQUESTS, ids=lambda words: " ".join(words)[:40].encode("ascii", "replace").decode())
def test_running_a_study(place: Place, words: list[str]) -> None:
    place.patch.setattr("ablations.running.runner.run_trials", lambda *_, **__: pytest.fail("a trial started"))
    place.patch.setattr("torch.cuda.is_available", lambda: False)
    place.refused(run, *words)


def test_requests_are_explained(place: Place) -> None:
    assert "there are aa, attention_dense" in place.refused(run)
    for word, meant in (("dryrun=true", "dry_run"), ("worker=1", "workers"), ("scales=tiny", "scale")):
        error = place.refused(run, STUDY, word)
        assert (
            f"did you mean {meant!r}? a study's own keys are sweep, scale, seeds, workers, launcher, dry_run" in error
        )


@pytest.mark.parametrize("entry", [run, report, workspace])
def test_help_names_what_there_is(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["--help"]) == 0
    said = capsys.readouterr().out
    assert "studies: aa, attention_dense" in said
    assert "scales:  base, paper, small, smoke, tiny" in said


GRIDS: list[Any] = [None, {}, [], "x", 3, {"loss.expert": None}, {"loss.expert": []}, {"loss.expert": [None, 1]}]
GRIDS += [{"loss.expert": 3}, {"loss.expert": [[1], [2]]}, {"loss.expert": [{"a": 1}, 2]}, {"loss.expert": [1, 1]}]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids(place: Place, grid: Any) -> None:
    node = yaml.safe_load(PAIR.read_text()) | {"grid": grid, "arms": None}
    (place.root / "grid.yaml").write_text(yaml.safe_dump(node))
    place.refused(run, "sweep=grid.yaml", "dry_run=true")


REPORTS = [[], ["x"], ["--tabel"], ["sweep=aa"], ["sweep=balance_loses"], ["sweep=aa", "scale=smok"], [STUDY]]
REPORTS += [["sweep=aa", word] for word in ("seeds=[0]", "dry_run=true", "sweep=aa", "scale=", f"scale={LONG}")]
REPORTS += [[f"sweep={name}"] for name in ("", LONG, BYTES, "file", "folder", "nothing.yaml", f"{LONG}.yaml")]


@pytest.mark.parametrize("words", REPORTS, ids=lambda words: " ".join(words)[:40].encode("ascii", "replace").decode())
def test_reporting_a_study(place: Place, words: list[str]) -> None:
    place.refused(report, *words)
    place.refused(report, *words, "--table")


WORKSPACES = [[], ["x"], ["--x", "sweep=aa"], ["sweep="], ["sweep=balance_loses"], ["sweep=aa", "entity="]]
WORKSPACES += [["sweep=aa", "project="], ["sweep=aa", "sweep=aa"], ["sweep=aa", "x=1"], [f"sweep={LONG}"]]


@pytest.mark.parametrize("words", WORKSPACES, ids=lambda words: " ".join(words)[:40])
def test_a_workspace(place: Place, words: list[str]) -> None:
    place.refused(workspace, *words)
    place.refused(sweeps, "x", *words)


@pytest.mark.parametrize("root", ["", "~", "~/runs", "file", "file/runs"])
def test_a_store_that_cannot_be(place: Place, root: str) -> None:
    place.patch.setenv("DSV2_RUNS", root)
    place.patch.setattr(fit, "fit", lambda run, folder: folder.mkdir(parents=True))
    place.refused(train, "trainer.accelerator=cpu")
    place.refused(run, STUDY, "trainer.accelerator=cpu")
    place.refused(report, STUDY)
    place.refused(command, "generate", "toy/smoke/moe/0", "--prompt", "x")


# ---- commands on runs ------------------------------------------------------------------------------------------------

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
    ("generate --max-new-tokens", ["--prompt", "Ban"], [*NUMBERS, "1.5", "9" * 30]),
    ("generate --temperature", ["--prompt", "Ban"], [*NUMBERS[:-1], "inf", "1e400"]),
    ("generate --seed", ["--prompt", "Ban"], [*NUMBERS, "1.5", "9" * 30]),
    ("eval --tasks", [], ["", ","]),
    ("eval --include-path", ["--tasks", "copying"], ["file", "nothing", *UNDER]),
    ("eval --limit", ["--tasks", "copying"], [*NUMBERS, "0", "1.5", "9" * 30]),
    ("eval --batch-size", ["--tasks", "copying"], [*NUMBERS, "0", "1.5", "9" * 30]),
    ("eval --out", ["--tasks", "copying"], ["folder", "nothing/x.json", *UNDER]),
    ("eval --text", ["--tasks", "copying"], ["x", "model=tiny", "data=null", "data=nothing", "data=files"]),
    ("analyse --out", ["--only", "shared"], ["file", *UNDER]),
    ("analyse --only", [], [",", "sharde", "null", BYTES]),
    ("analyse --text", ["--only", "shared"], ["x", "model=tiny", "data=null", "data=nothing", "data=files"]),
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
    "load types": lambda: dsv2.load([3]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("name", CALLS)
def test_entries_of_python_name_what_is_wrong(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CALLS[name]()
    assert refused.value.key
    assert not Path(os.environ["DSV2_RUNS"]).exists()


def test_a_study_may_be_a_path(tmp_path: Path) -> None:
    assert study(PAIR, seeds=[0]).arms.keys() == {"none", "expert"}
    assert math.isfinite(len(results(PAIR)))
