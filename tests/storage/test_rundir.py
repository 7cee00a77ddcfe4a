"""What a run directory says of itself, also where it is damaged."""

import json
from pathlib import Path

import pytest

from dsv2.storage import checkpoints, rundir
from dsv2.storage.files import write_json
from dsv2.storage.rundir import finished, read_result, require_unchanged, runs_root, write_result
from dsv2.storage.sealed import Damaged
from tests.references.faults import flip, halve

WHOLE = {"status": "finished", "metrics": {"val/loss": 2.5, "routing/dead_experts": 0}, "steps": 12}


def test_files_keep_the_names_that_others_read_them_by() -> None:
    names = (rundir.CONFIG, rundir.METRICS, rundir.ROUTING, rundir.CHECKPOINTS, rundir.RESULT)
    assert names == ("config.yaml", "metrics.jsonl", "routing.parquet", "checkpoints", "result.json")


def test_the_root_is_here_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "elsewhere"))
    assert runs_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("DSV2_RUNS")
    assert runs_root() == Path("runs")


# ---- how a run ended -------------------------------------------------------------------------------------------------


def test_only_a_finished_run_is_finished(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", WHOLE)
    assert finished(tmp_path) == read_result(tmp_path) == WHOLE
    for status in ("failed", "diverged", None):
        write_json(tmp_path / "result.json", WHOLE | {"status": status})
        assert finished(tmp_path) is None
        assert read_result(tmp_path)["status"] == status


def test_without_a_result_a_run_is_unfinished_and_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".result.json.1.tmp").write_text(json.dumps(WHOLE))  # of a run that was killed while it wrote
    assert finished(tmp_path) is None
    assert read_result(tmp_path) == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"\xff\xfe",
        b"[]",
        b'"finished"',
        json.dumps(WHOLE | {"metrics": None}).encode(),
        json.dumps(WHOLE | {"metrics": [1.0]}).encode(),
        json.dumps(WHOLE | {"metrics": {"val/loss": "2.5"}}).encode(),
        json.dumps(WHOLE | {"metrics": {"val/loss": None}}).encode(),
    ],
)
def test_a_damaged_result_counts_as_none_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    assert finished(tmp_path) is None
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}: damaged, ")
    assert said.endswith("; the run counts as unfinished, and its command trains it again\n")
    assert path.read_bytes() == content  # for whoever wants to look


def test_half_a_result_counts_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "result.json", WHOLE)
    halve(tmp_path / "result.json")
    result = read_result(tmp_path)
    assert result == {"status": "damaged", "error": result["error"]}
    assert capsys.readouterr().err.startswith(f"warning: {result['error']}; ")


def test_a_finished_run_counts_while_every_file_is_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "data.json", "metrics.jsonl", "routing.parquet", "log.txt"):
        (tmp_path / name).write_text(f"the {name} of this run")
    write_result(tmp_path, WHOLE)
    assert finished(tmp_path) == read_result(tmp_path)
    assert set(read_result(tmp_path)["files"]) == {"config.yaml", "data.json", "metrics.jsonl", "routing.parquet"}
    flip(tmp_path / "log.txt")
    assert finished(tmp_path) is not None
    require_unchanged(tmp_path)
    flip(tmp_path / "metrics.jsonl")
    assert finished(tmp_path) is None
    error = f"{tmp_path}/metrics.jsonl: not as it was when the run finished"
    assert read_result(tmp_path) == {"status": "damaged", "error": error}
    assert f"warning: {error}; the run counts as unfinished" in capsys.readouterr().err
    require_unchanged(tmp_path, ("config.yaml", "data.json"))
    (tmp_path / "data.json").unlink()
    with pytest.raises(Damaged, match=r"data\.json: missing"):
        require_unchanged(tmp_path, ("config.yaml", "data.json"))


def test_checkpoints_are_covered_by_their_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not while there are none: results do not need them, and they take space."""
    manifest = tmp_path / "checkpoints" / checkpoints.MANIFEST
    manifest.parent.mkdir()
    manifest.write_text("{}")
    write_result(tmp_path, WHOLE)
    assert list(read_result(tmp_path)["files"]) == ["checkpoints/manifest.json"]
    flip(manifest)
    assert finished(tmp_path) is None
    assert f"{manifest}: not as it was when the run finished; the run counts as unf" in capsys.readouterr().err
    manifest.unlink()
    assert read_result(tmp_path)["error"] == f"{manifest}: missing"
    manifest.parent.rmdir()
    assert finished(tmp_path) is not None


def test_a_failed_run_covers_no_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0")
    write_result(tmp_path, {"status": "failed", "error": "disk"})
    (tmp_path / "config.yaml").unlink()  # its next attempt writes another
    assert read_result(tmp_path) == {"status": "failed", "error": "disk"}


def test_files_of_a_result_that_are_no_list_are_damage(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", WHOLE | {"files": ["config.yaml"]})
    assert read_result(tmp_path)["status"] == "damaged"
