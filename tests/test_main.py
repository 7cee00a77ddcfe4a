"""`python -m dsv2 COMMAND`: runs by any of their names, mistakes in one line, and a Ctrl-C that is no mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dsv2.__main__
from dsv2.__main__ import main

COMMANDS = [
    "new",
    "ls",
    "show",
    "compare",
    "rm",
    "doctor",
    "account",
    "import-hf",
    "export-hf",
    "generate",
    "eval",
    "analyse",
    "export-traces",
    "explore",
    "serve",
    "tasks",
    "judge",
    "corpus",
    "simulate",
]
ON_RUNS = {  # what a command needs beside RUN
    "export-hf": ["out"],
    "generate": ["--prompt", "Ban"],
    "eval": ["--tasks", "copying"],
    "analyse": ["--only", "shared"],
    "export-traces": ["out"],
    "explore": ["--no-browser"],
    "serve": ["--port", "0"],
    "show": [],
    "tasks": ["--prompts", "1"],
}
NAMES = "a run directory, sweep/scale/arm/seed, or the first digits of a fingerprint under"


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# ---- names of runs ---------------------------------------------------------------------------------------------------


def test_a_run_has_three_names(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its path, the first digits of its fingerprint, and study/scale/arm/seed."""
    said = []
    for name in (str(trained), trained.name, trained.name[:4], "toy/smoke/moe/0"):
        assert main(["generate", name, "--prompt", "Ban", "--max-new-tokens", "6"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("Ban")
    assert said == said[:1] * 4


@pytest.mark.parametrize("command", ON_RUNS)
@pytest.mark.parametrize("name", ["nowhere", "ffff", "toy/smoke/moe/1", "toy/tiny/moe/0", ""])
def test_what_is_no_run_is_one_line(
    command: str, name: str, trained: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert main([command, name, *ON_RUNS[command]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: RUN={name!r}: {NAMES} {tmp_path}/runs")
    assert said.err.count("\n") == 1
    assert ("arms there are moe, seeds 0" in said.err) == (name == "toy/smoke/moe/1")
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ON_RUNS)
def test_a_folder_that_is_no_run_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main([command, "folder", *ON_RUNS[command]]) == 2
    assert capsys.readouterr() == ("", "error: folder: not a run directory, it has no config.yaml\n")
    assert not files(tmp_path)


def test_digits_that_several_runs_begin_with_are_refused(
    trained: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs / "train" / f"{trained.name[:8]}00000000"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("model: {}\n")
    assert main(["generate", trained.name[:8], "--prompt", "Ban"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: RUN='{trained.name[:8]}': matches 2 runs; choose one of ")
    assert str(trained) in error
    assert str(other) in error
    assert main(["generate", trained.name, "--prompt", "Ban", "--max-new-tokens", "0"]) == 0


# ---- the command line ------------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "RUN is a run directory" in shown
    assert re.search(r"\{([\w,-]+)\}", shown)[1].split(",") == COMMANDS
    documented = dsv2.__main__.__doc__.partition(":")[2].partition(".")[0]
    assert [name.strip() for name in documented.split(",")] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: dsv2 {command} ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "the following arguments are required: command"),
        (["sing"], "invalid choice: 'sing'"),
        (["eval", "RUN"], "the following arguments are required: --tasks"),
        (["analyse"], "one of the arguments RUN --traces is required"),
        (["export-hf", "RUN"], "the following arguments are required: out"),
        (["generate", "RUN", "--promt", "x"], "one of the arguments --prompt --prompts is required"),
        (["eval", "RUN", "--tasks", "cloze", "--limit", "all"], "argument --limit: invalid int value: 'all'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_explained(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert named in err


def test_more_runs_than_can_be_compared_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "a", "b", "c"]) == 2
    assert capsys.readouterr().err == "error: RUN='a b c' is not valid: one run, or two to compare\n"


def test_analyses_are_named_with_commas(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", str(trained), "--only", "shared,,sharde"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: only='sharde' is not valid: one or more of shared, ")
    assert not (trained / "analysis").exists()


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (ValueError("field=3: 4 or more"), 2, "error: field=3: 4 or more\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a"),
            2,
            "error: a: No such file or directory\n",
        ),
        (PermissionError(13, "Permission denied", "a"), 2, "error: a: Permission denied\n"),
        (OSError(36, "File name too long", "a" * 5000), 2, f"error: {'a' * 157}...{'a' * 40}: File name too long\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_a_command_fails(
    raised: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("dsv2.commands.generate.generate_command", fail)
    assert main(["generate", "RUN", "--prompt", "Ban"]) == status
    assert capsys.readouterr() == ("", line)


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dsv2.commands.generate.generate_command", fail)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "RUN", "--prompt", "Ban"])


@pytest.mark.parametrize(
    ("words", "status", "out", "err"),
    [
        (["generate", "toy/smoke/moe/0", "--prompt", "Ban", "--max-new-tokens", "0"], 0, r"Ban\n", ""),
        (["generate", "toy/smoke/mo/0", "--prompt", "Ban"], 2, "", rf"error: RUN='toy/smoke/mo/0': {NAMES} .*\n"),
    ],
)
def test_as_a_process(words: list[str], status: int, out: str, err: str, trained: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsv2", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert re.fullmatch(out, done.stdout)
    assert re.fullmatch(err, done.stderr)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    """`dsv2 account --published | head -1`, with more output than a pipe holds by itself."""
    listing = subprocess.Popen(
        [sys.executable, "-m", "dsv2", "account", "--published"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.communicate(timeout=120)[1] == b""
