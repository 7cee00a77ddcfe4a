"""`python -m ablations.bundle`: a study as one archive, verified when it is opened elsewhere."""

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations import report, run
from ablations.bundle import MANIFEST, main
from ablations.studies import StudyHandle, study
from dsv2.storage.rundir import FILES, write_result
from dsv2.storage.sealed import read_sealed

Fill = Callable[..., StudyHandle]


@pytest.fixture
def packed(fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A reported study in an archive; from here on, the store of runs is that of another machine."""
    fill("kv_rank", seeds=(0, 1, 2))
    assert report.main(["sweep=kv_rank"]) == 0
    assert main(["sweep=kv_rank", str(tmp_path / "kv.zip")]) == 0
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "elsewhere"))
    capsys.readouterr()
    return tmp_path / "kv.zip"


def changed(archive: Path, change: Callable[[dict[str, bytes]], None], twice: str = "") -> Path:
    """Rewrite an archive with other entries."""
    with zipfile.ZipFile(archive) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    change(entries)
    with zipfile.ZipFile(archive, "w") as target:
        for name, content in entries.items():
            target.writestr(name, content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                target.writestr(twice, b"again")
    return archive


def refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of opening an archive, of which nothing may be left."""
    elsewhere = archive.parent / "elsewhere"
    assert main(["--open", str(archive)]) == 2
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_an_opened_study_is_reported_as_it_was(
    packed: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--open", str(packed)]) == 0
    said = capsys.readouterr().out
    there, here = tmp_path / "elsewhere" / "kv_rank" / "smoke", runs / "kv_rank" / "smoke"
    assert said.startswith(f"{there}: ")
    shutil.move(runs, tmp_path / "gone")
    shutil.rmtree(there / "report")
    assert report.main(["sweep=kv_rank"]) == 0
    for name in ("report.md", "trials.csv", "contrasts.csv"):
        former = (tmp_path / "gone" / here.relative_to(runs) / "report" / name).read_text()
        assert (there / "report" / name).read_text() == former


def test_trials_are_read_only_and_seeds_can_be_added(packed: Path, tmp_path: Path) -> None:
    assert main(["--open", str(packed)]) == 0
    results = list((tmp_path / "elsewhere").glob("kv_rank/smoke/trials/*/result.json"))
    assert len(results) == len(study("kv_rank", seeds=[0, 1, 2]).trials)
    assert not any(path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) for path in results)
    more = study("kv_rank", seeds=[0, 1, 2, 3])
    more.remember()  # as a run does first
    assert {trial.folder.name for trial in study("kv_rank", seeds=[0, 1, 2]).trials} == {
        path.parent.name for path in results
    }


@pytest.mark.slow
def test_another_seed_is_trained_beside_what_was_packed(
    small: StudyHandle, here: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert small.run(workers=1)
    archive = tmp_path / "pair.zip"
    assert main([f"sweep={small.source}", "weights=true", str(archive)]) == 0
    assert any("checkpoints" in name for name in zipfile.ZipFile(archive).namelist())
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "elsewhere"))
    assert main(["--open", str(archive)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].partition("python -m ablations.run ")[2]
    here.clear()
    assert run.main([word.strip("'") for word in command.split()]) == 0
    assert len(here) == 2  # of the new seed alone


def test_the_same_study_gives_the_same_archive(fill: Fill, tmp_path: Path) -> None:
    fill("kv_rank")
    for name in ("a.zip", "b.zip"):
        assert main(["sweep=kv_rank", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_every_file_that_a_result_covers_is_packed(fill: Fill, tmp_path: Path) -> None:
    """Else an opened trial would count as damaged."""
    trial = fill("kv_rank", seeds=(0, 1, 2)).trials[0].folder
    for name in FILES:
        (trial / name).write_text("{}")
    write_result(trial, {"status": "finished", "metrics": {}})
    assert main(["sweep=kv_rank", str(tmp_path / "kv.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "kv.zip") as archive:
        packed = {Path(name).name for name in archive.namelist() if f"/{trial.name}/" in name}
    assert packed == {*read_sealed(trial / "result.json")["files"], "result.json"} == {*FILES, "result.json"}


def test_unfinished_trials_are_left_out_and_counted(
    fill: Fill, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = fill("kv_rank", leave_out=2)
    assert main(["sweep=kv_rank", str(tmp_path / "kv.zip")]) == 0
    said = capsys.readouterr().out
    assert f": {len(planned.trials) - 2} trials, " in said
    assert "; 2 unfinished ones are left out" in said


def test_a_flipped_byte_a_missing_and_an_unlisted_file_are_named(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = packed.read_bytes()
    name = next(name for name in zipfile.ZipFile(packed).namelist() if name.endswith("result.json"))

    def flip(entries: dict[str, bytes]) -> None:
        entries[name] = entries[name][:-3] + bytes([entries[name][-3] ^ 1]) + entries[name][-2:]

    for change, says in (
        (flip, f"{name} is not as it was packed"),
        (lambda entries: entries.pop(name), f"{name} is missing"),
        (lambda entries: entries.update({"trials/more.json": b"{}"}), "lists, which trials/more.json is not"),
        (lambda entries: entries.pop(MANIFEST), f"it has no {MANIFEST}"),
        (
            lambda entries: entries.update({MANIFEST: entries[MANIFEST][:-9]}),
            f"its {MANIFEST} does not fit its checksum",
        ),
    ):
        packed.write_bytes(whole)
        assert says in refused(changed(packed, change), capsys)
    packed.write_bytes(whole)
    assert f"once, unlike {name}" in refused(changed(packed, lambda entries: None, twice=name), capsys)
    packed.write_bytes(whole[: len(whole) // 2])
    assert "an archive of this command" in refused(packed, capsys)


@pytest.mark.parametrize("name", ["../outside.json", "/outside.json", "trials/../../../outside.json"])
def test_no_file_leaves_the_folder(packed: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lead_out(entries: dict[str, bytes]) -> None:
        from dsv2.storage.sealed import file_hash, write_sealed

        content = json.loads(entries[MANIFEST])
        del content["sha256"]
        loose = tmp_path / "loose"
        loose.write_bytes(b"{}")
        content["files"][name] = file_hash(loose)
        write_sealed(loose, content)
        entries |= {MANIFEST: loose.read_bytes(), name: b"{}"}

    assert f"stay in its folder, unlike {name}" in refused(changed(packed, lead_out), capsys)
    assert not list(tmp_path.rglob("outside.json"))


def test_nothing_is_overwritten(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--open", str(packed)]) == 0
    assert main(["--open", str(packed)]) == 2
    assert "already exists and is not an empty directory" in capsys.readouterr().err
    assert main(["sweep=kv_rank", str(packed)]) == 2
    assert "OUT=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep=kv_rank"], "sweep='kv_rank' is not valid: a study that has been run; "),
        (["sweep=kv_rank", "weights=maybe"], "weights='maybe' is not valid: true or false"),
        (["sweep=kv_rank", "a.zip", "b.zip"], "argument='b.zip' is not valid: one study at one scale"),
        (["sweep=kv_rank", "optim.lr=1"], "argument='optim.lr=1' is not valid: one study at one scale"),
        (["--open"], "--open='' is not valid: the path of one archive"),
        (["--open", "none.zip"], "none.zip"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
