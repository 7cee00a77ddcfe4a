"""What is asked of the machine, what it refuses, and what a result says of it."""

import logging
import platform
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.config import ConfigError
from dsv2.training import fit, machine
from dsv2.training.machine import git_state, keep_freed_memory, peak_flops, prepare, provenance

CPU = torch.device("cpu")


# ---- set-up ----------------------------------------------------------------------------------------------------------


def test_lightning_is_quiet_about_what_is_no_error() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    with warnings.catch_warnings(record=True) as heard:
        prepare()
        for module in ("lightning.pytorch.trainer", "other"):
            warnings.warn_explicit(f"of {module}", UserWarning, "file.py", 1, module=module, registry={})
    assert [str(warning.message) for warning in heard] == ["of other"]
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        assert not logging.getLogger(name).isEnabledFor(logging.WARNING)
        assert logging.getLogger(name).isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(("libc", "calls"), [("glibc", [(-3, 32 << 20), (-1, 2**31 - 1)]), ("", []), ("musl", [])])
def test_only_glibc_is_told_to_keep_memory(
    monkeypatch: pytest.MonkeyPatch, libc: str, calls: list[tuple[int, int]]
) -> None:
    told = []

    class Library:
        def __init__(self, name: None) -> None:
            """The C library of this process."""

        def mallopt(self, parameter: int, value: int) -> None:
            told.append((parameter, value))

    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(machine.ctypes, "CDLL", Library)
    keep_freed_memory()
    assert told == calls


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)


@pytest.mark.usefixtures("without_gpu")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(quick: list[str], tmp_path: Path) -> None:
    run = dsv2.load([*quick, "trainer.accelerator=gpu"])
    with pytest.raises(ConfigError) as refused:
        fit.fit(run, tmp_path / "run")
    assert str(refused.value) == (
        "trainer.accelerator='gpu' is not valid: auto or cpu, since torch finds no GPU on this machine"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_gpu")
def test_a_finished_run_of_a_gpu_answers_without_one(quick: list[str], tmp_path: Path) -> None:
    done = {"status": "finished", "metrics": {}}
    fit.write_json(tmp_path / "result.json", done)
    assert fit.fit(dsv2.load([*quick, "trainer.accelerator=gpu"]), tmp_path) == done


@pytest.mark.parametrize("backend", [torch.cuda, torch.backends.mps], ids=["cuda", "mps"])
@pytest.mark.usefixtures("without_gpu")
def test_what_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, backend: object) -> None:
    machine.require_accelerator("cpu")
    machine.require_accelerator("auto")
    monkeypatch.setattr(backend, "is_available", lambda: True)
    machine.require_accelerator("gpu")


# ---- peak rate -------------------------------------------------------------------------------------------------------


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that take 3, 2, 0.5, 4, 1 and 6 seconds by a clock of our own; measured once per process."""
    readings = [0.0, 3.0, 3.0, 5.0, 5.0, 5.5, 6.0, 10.0, 10.0, 11.0, 12.0, 18.0]
    clock = iter(readings)
    peak_flops.cache_clear()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    assert peak_flops(CPU, "fp32") == 2 * 768**3 / 0.5
    assert peak_flops(CPU, "fp32") == 2 * 768**3 / 0.5
    assert next(clock, None) is None
    peak_flops.cache_clear()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_peak_is_measured_in_the_precision_of_the_products(
    monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    made, ones = [], torch.ones

    def record(*size: int, **options: object) -> torch.Tensor:
        made.append((size, options["dtype"]))
        return ones(8, 8, **options)

    peak_flops.cache_clear()
    monkeypatch.setattr(torch, "ones", record)
    assert peak_flops(CPU, precision) > 0
    assert made == [((768, 768), dtype)]
    peak_flops.cache_clear()


# ---- provenance ------------------------------------------------------------------------------------------------------


def test_a_result_says_what_it_was_made_with() -> None:
    said = provenance(CPU)
    assert said["versions"]["torch"] == torch.__version__
    assert said["versions"]["python"] == platform.python_version()
    assert set(said["versions"]) == {"python", "dsv2", "torch", "lightning", "numpy", "tokenizers"}
    assert said["threads"] == torch.get_num_threads()
    assert said["device"]
    assert said["kernels"] == "torch"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [("processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nmodel name\t: Other\n", "Some CPU: 3 GHz"), ("x: y\n", "arm")],
)
def test_a_processor_is_named_where_the_system_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm")
    assert machine.cpu_name() == expected


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the module lies."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "machine.py").touch()
    git(folder, "init", "-q")
    git(folder, "add", "machine.py")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    monkeypatch.setattr(machine, "__file__", str(folder / "machine.py"))
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_says_its_commit_and_whether_it_was_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state() == {"commit": commit, "dirty": False}
    (checkout / "machine.py").write_text("changed")
    assert git_state() == {"commit": commit, "dirty": True}


def test_outside_a_checkout_there_is_no_commit(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / ".venv" / "machine.py"  # in an environment within the checkout of another project
    installed.parent.mkdir()
    for place in (tmp_path / "machine.py", installed):
        place.touch()
        monkeypatch.setattr(machine, "__file__", str(place))
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert git_state() is None


@pytest.mark.usefixtures("checkout")
def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None
