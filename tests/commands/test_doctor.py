"""`python -m dsv2 doctor`: it says what is there and what is missing, and compiles nothing."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from dsv2.__main__ import main
from dsv2.commands import doctor
from dsv2.kernels.cpu import library

SUBJECTS = ["python", "dsv2", "torch", "lightning", "numpy", "tokenizers"]
SUBJECTS += ["CPU", "GPU", "kernels", "compiler", "triton", "store", "caches", "missing"]


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_build", lambda *_: pytest.fail("kernels are compiled"))


def findings(capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, str]:
    """The lines that are printed; of several on one subject, the last."""
    assert main(["doctor"]) == status
    return {line[:11].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}


def without(patch: pytest.MonkeyPatch, *missing: str) -> None:
    """Let packages seem not to be installed."""
    version = importlib.metadata.version

    def there(name: str) -> str:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    patch.setattr(importlib.metadata, "version", there)


def test_every_subject_has_a_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys)
    assert list(found) == SUBJECTS
    assert found["torch"].strip() == torch.__version__
    assert f"{runs}, made by the first run" in found["store"]
    (runs / "train" / "aaaa000000000000").mkdir(parents=True)
    (runs / "train" / "aaaa000000000000" / "config.yaml").write_text("seed: 0\n")
    assert f"{runs}, runs: 1, " in findings(capsys)["store"]


def test_a_package_that_is_missing_is_named_with_what_needs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "panel", "ray")
    monkeypatch.setattr(doctor, "EXTRAS", {"explore": "dsv2 explore"})
    assert findings(capsys)["missing"].strip() == "panel, for dsv2 explore: pip install 'dsv2[explore]'"
    without(monkeypatch, "jinja2")
    monkeypatch.setattr(doctor, "EXTRAS", {})
    assert findings(capsys, 1)["missing"].strip() == "jinja2, for everything: pip install 'dsv2'"


def test_it_is_known_what_each_extra_is_for() -> None:
    extras = importlib.metadata.metadata("dsv2").get_all("Provides-Extra")
    assert {*doctor.EXTRAS, "all"} == set(extras or [])
    assert doctor.required("explore") == ["panel"]
    assert {"torch", "jinja2"} <= set(doctor.required(""))
    assert "panel" not in doctor.required("")


def test_without_a_compiler_it_is_said_what_that_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("DSV2_CACHE", "off")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = findings(capsys)
    assert "no no-such-compiler: install a C++ compiler, or name one in CXX" in found["compiler"]
    assert "torch: without a C++ compiler" in found["kernels"]
    assert "none, since DSV2_CACHE=off" in found["caches"]


def test_what_is_not_compiled_yet_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSV2_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_compiler", lambda: "c++ 14")
    assert findings(capsys)["kernels"].strip() == "cpu, compiled at first use, in about a minute"


def test_a_store_that_cannot_be_written_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "file" / "runs"))
    assert "cannot be written to; DSV2_RUNS names another folder" in findings(capsys, 1)["store"]
