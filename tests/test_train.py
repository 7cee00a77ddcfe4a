"""`python -m dsv2.train`: prints its run directory last, refuses in one line, and goes on where it was stopped."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import dsv2
from ablations import study
from dsv2.config import CONFIG_DIR, ConfigError
from dsv2.storage.rundir import finished
from dsv2.storage.space import DiskFull
from dsv2.train import expanded, main
from dsv2.training import fit
from dsv2.training.machine import best_kernels
from dsv2.training.module import Diverged
from dsv2.training.run import with_kernels
from dsv2.training.saved import open_run
from tests.references.processes import wait_for
from tests.references.runs import rows

ROOT = Path(__file__).parents[1]
Train = Callable[..., int]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Calls the application with some words in this process; returns its exit status."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which it sets

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dsv2.train", *words])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def process(*words: str) -> subprocess.Popen[str]:
    """`python -m dsv2.train` as a process of its own session."""
    paths = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "dsv2.train", *words]
    return subprocess.Popen(
        command, env=paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def printed(*words: str) -> str:
    """What the process prints when all goes well."""
    running = process(*words)
    out, err = running.communicate()
    assert running.returncode == 0, err[-2000:]
    return out


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_the_last_line_is_the_run_directory(
    train: Train, quick: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dsv2.load([*quick, "seed=3"])
    assert train(*quick, "seed=3") == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder == runs / "train" / config.fingerprint()
    assert open_run(folder).config == with_kernels(config, best_kernels("cpu"))
    assert finished(folder)["seed"] == 3
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train(*quick, "seed=3") == 0  # finished means skipped
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_arm_of_a_study_trains_into_the_studys_folder(
    train: Train, quick: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []
    monkeypatch.setattr(fit, "fit", lambda run, folder: trained.append((run, folder)))
    assert train("study=balance_losses", "arm=paper", "seed=2", "trainer.accelerator=cpu") == 0
    assert train(*quick, "study=mine") == 0
    (trial, folder), (other, elsewhere) = trained
    assert (trial.study, trial.scale, trial.arm, trial.seed) == ("balance_losses", "smoke", "paper", 2)
    assert (trial.loss.expert, trial.loss.device, trial.loss.communication) == (0.003, 0.05, 0.02)
    assert folder == runs / "balance_losses" / "smoke" / "trials" / trial.fingerprint()
    assert elsewhere == runs / "mine" / other.fingerprint()
    assert capsys.readouterr().out.splitlines() == [str(folder), str(elsewhere)]


def test_other_processes_of_torchrun_print_nothing(
    train: Train, quick: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "fit", lambda run, folder: None)
    monkeypatch.setenv("RANK", "1")
    assert train(*quick) == 0
    assert capsys.readouterr().out == ""


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lrr=1"], "optim.lrr=1 is not valid: unknown key; did you mean 'lr'?"),
        (["optim.lr=fast"], "optim.lr='fast' is not valid: "),
        (["model=v3"], "model='v3' is not valid: choose one of deepseek_67b"),
        (["model/attention=mla2"], "model/attention='mla2' is not valid: choose one of"),
        (["seed=-1"], "seed=-1 is not valid: 0 or more"),
        (["trainer.sequence_length=0"], "trainer.sequence_length=0 is not valid: positive"),
        (["trainer.validate_every=3"], "trainer.validate_every=3 is not valid: a multiple of trainer.log_every=2"),
        (["data.path=nowhere/*.txt"], "data.path='nowhere/*.txt' is not valid: a glob that matches files"),
        (["seed"], "override='seed' is not valid: use key=value"),
        (["study=nope", "arm=a"], "sweep='nope' is not valid: choose one of"),
        (["study=aa", "arm=z"], "arm='z' is not valid: one of a, b, c, d"),
    ],
)
def test_impossible_overrides_are_one_line(
    train: Train, quick: list[str], runs: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*quick, *words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
    assert not runs.exists()


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (
            Diverged("the loss became nan in step 10"),
            1,
            "error: the loss became nan in step 10; the last good checkpoint",
        ),
        (DiskFull(Path("run/metrics.jsonl"), errno.ENOSPC), 1, "error: run/metrics.jsonl: no space left on the disk ("),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (fit.Interrupted("stopped by SIGTERM"), 143, "stopped by SIGTERM; run the same command again to resume"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to resume"),
        (ConfigError("mesh.dp", 2, "1"), 2, "error: mesh.dp=2 is not valid: 1"),
    ],
)
def test_how_a_run_ends(
    train: Train,
    quick: list[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    status: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(fit, "fit", fail)
    assert train(*quick) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(line)
    assert said.err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_the_same_command_resumes(quick: list[str], tmp_path: Path, runs: Path) -> None:
    """To the whole group, as a terminal sends it. What is logged in the end is that of one sitting.

    All of them are processes alike: other numbers of threads add float32 terms in another order.
    """
    words = [*quick, "trainer.tokens=25600"]  # 200 steps
    running = process(*words)
    wait_for(lambda: [*runs.glob("train/*/checkpoints/manifest.json")] or running.poll() is not None)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in err
    (folder,) = (runs / "train").iterdir()
    assert not (folder / "result.json").exists()
    assert open_run(folder).steps
    stopped = (folder / "metrics.jsonl").read_text().splitlines()

    assert folder.name == dsv2.load(words).fingerprint()
    printed(*words)
    assert (folder / "metrics.jsonl").read_text().splitlines()[:2] == stopped[:2]  # with their speed: not trained again
    shutil.move(folder, tmp_path / "resumed")
    printed(*words)
    assert rows(folder) == rows(tmp_path / "resumed")


# ---- an arm of a study -----------------------------------------------------------------------------------------------


def test_an_arm_whose_learning_rate_is_not_known_is_not_trained():
    with pytest.raises(ConfigError, match=r"^lr_from='attention_lr' is not valid: a study that has finished at scale"):
        expanded(["study=attention_tuned", "arm=small_mla"])


def test_the_command_line_of_an_arm():
    words = expanded(["--cfg", "job", "study=balance_losses", "arm=paper", "seed=3", "optim.lr=1e-4"])
    assert words[:2] == ["--cfg", "job"]
    assert "loss.device=0.05" in words
    assert words[-2:] == ["optim.lr=1e-4", "seed=3"]
    assert expanded(["arm=mine", "optim.lr=1e-4"]) == ["arm=mine", "optim.lr=1e-4"]
    assert expanded(["study=aa", "arm=b", "seed=3"])[-1] == "seed=1003"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study=nope", "arm=a"], "sweep='nope' is not valid: choose one of"),
        (["study=aa", "arm=z"], "arm='z' is not valid: one of a, b, c, d"),
        (["study=aa", "arm=a", "scale=huge"], "scale='huge' is not valid"),
        (["study=aa", "arm=a", "seed=1,2"], "seed='1,2' is not valid: one seed"),
        (["study=aa", "arm=a", "probe=recall"], "probe='recall' is not valid: one of this study's, which has none"),
    ],
)
def test_bad_names_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        expanded(words)


# ---- as a Hydra application ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_help_lists_the_groups():
    shown = printed("--help")
    for group in ("model", "model/attention", "model/ffn", "model/ffn/dropping", "model/rope"):
        choices = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
        assert f"\n{group}: {', '.join(choices)}\n" in shown


@pytest.mark.slow
def test_the_composed_job_is_printed():
    job = yaml.safe_load(printed("--cfg", "job", "model/ffn/dropping=device", "model/rope=yarn"))
    assert job["model"]["ffn"]["dropping"]["exempt_ratio"] == 0.1
    assert job["model"]["rope"]["yarn"]["factor"] == 40.0


@pytest.mark.slow
def test_a_multirun_takes_every_choice(quick):
    shown = printed("-m", "model/ffn/dropping=none,device", "model/rope=yarn", *quick)
    folders = [Path(line) for line in shown.splitlines() if Path(line).is_absolute()]
    stored = [yaml.safe_load((folder / "config.yaml").read_text())["model"] for folder in folders]
    assert [model["ffn"]["dropping"] and model["ffn"]["dropping"]["exempt_ratio"] for model in stored] == [None, 0.1]
    assert [model["rope"]["yarn"]["factor"] for model in stored] == [40.0, 40.0]


# ---- names that YAML and Hydra read as something else ----------------------------------------------------------------


@pytest.mark.parametrize("quotes", ["{}", "'{}'", '"{}"'])
def test_names_are_text(
    train: Train,
    quick: list[str],
    tmp_path: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quotes: str,
) -> None:
    trained = []
    monkeypatch.setattr(fit, "fit", lambda run, folder: trained.append((run.study, run.arm, folder)))
    arms = ["64", "1e-3", "无", "null_", "true", "0x1f"]
    node = yaml.safe_load((ROOT / "tests" / "ablations" / "pair.yaml").read_text())
    node["base"] = [*quick, *node["base"]]
    node["arms"] = {arm: {"about": arm, "overrides": [f"loss.expert=0.0{i + 1}"]} for i, arm in enumerate(arms)}
    file = tmp_path / "2024.yaml"
    file.write_text(yaml.safe_dump(node | {"baseline": "64"}, allow_unicode=True))
    for arm in arms:
        assert train(f"study={quotes.format(file)}", f"arm={quotes.format(arm)}") == 0, capsys.readouterr().err
    planned = {trial.arm: trial.folder for trial in study(str(file), seeds=[0]).trials}
    assert trained == [("2024", arm, planned[arm]) for arm in arms]
    assert {folder.parent for folder in planned.values()} == {runs / "2024" / "smoke" / "trials"}


@pytest.mark.parametrize("seed", ["²", "-1", "1.0", "", "0,1"])
def test_a_seed_is_a_number(train: Train, seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("study=aa", "arm=a", f"seed={seed}") == 2
    assert capsys.readouterr().err.startswith(f"error: seed={seed!r} is not valid: one seed")
