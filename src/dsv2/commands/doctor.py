"""`python -m dsv2 doctor`: what this machine has, which kernels run here, and what is missing for what."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from dsv2.caches import cache_folder
from dsv2.kernels.cpu import library
from dsv2.kernels.triton import device as triton
from dsv2.kernels.unavailable import Unavailable
from dsv2.report.terminal import open_console
from dsv2.storage.rundir import runs_root
from dsv2.storage.runs import list_runs
from dsv2.training.machine import PACKAGES, best_kernels, cpu_name, git_state

EXTRAS = {  # optional dependencies -> what needs them; `all` and `launchers` aside, `make setup` installs each
    "corpus": "corpus build, data=filtered",
    "dev": "make test, make lint",
    "docs": "make docs",
    "eval": "dsv2 eval with tasks of lm-evaluation-harness",
    "explore": "dsv2 explore",
    "gpu": "trainer.kernels=triton",
    "hf": "data=huggingface; tests against transformers",
    "launchers": "launcher=slurm and launcher=ray",
    "notebooks": "make lab",
    "serve": "dsv2 serve",
    "wandb": "workspaces in W&B (W&B itself is installed)",
}


class Finding(NamedTuple):
    """One line of the answer."""

    subject: str
    state: str
    wrong: bool = False  # nothing works until it is mended


def doctor() -> bool:
    """Print the findings; return whether one of them is wrong."""
    findings = [*versions(), *machine(), *places(), *missing()]
    console, width = open_console(), max(len(finding.subject) for finding in findings)
    for subject, state, wrong in findings:
        console.print(f"{subject:<{width}}  {state}", style="red" if wrong else None, soft_wrap=True)
    return any(finding.wrong for finding in findings)


def versions() -> list[Finding]:
    """Return the versions that a run records, and the commit."""
    git = git_state()
    commit = f", commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""
    found = [Finding("python", f"{platform.python_version()}, {sys.executable}")]
    for package in PACKAGES:
        version = importlib.metadata.version(package)
        found.append(Finding(package, f"{version}{commit}" if package == "dsv2" else version))
    return found


def machine() -> list[Finding]:
    """Return device, kernels and compiler. Compiles nothing."""
    count = torch.cuda.device_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(count)]
    return [
        Finding("CPU", f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"),
        Finding("GPU", ", ".join(gpus) or "none that torch finds"),
        Finding("kernels", _kernels()),
        Finding("compiler", _compiler() or f"no {library.compiler()}: install a C++ compiler, or name one in CXX"),
        Finding("triton", _triton()),
    ]


def _kernels() -> str:
    """Say what `trainer.kernels=auto` means here."""
    kept = library.kept()
    if kept is not None and kept.is_file():
        kernels = best_kernels("auto")
        return f"{kernels}, compiled in {kept.parent}" if kernels == "cpu" else kernels
    if torch.cuda.is_available():
        return "torch on the GPU; those for the CPU are compiled at first use"
    if _compiler() is None:
        return "torch: without a C++ compiler those for the CPU cannot be compiled, and training takes longer"
    return "cpu, compiled at first use, in about a minute"


def _compiler() -> str | None:
    """Return the first line that the C++ compiler says of itself; None if there is none."""
    try:
        done = subprocess.run([library.compiler(), "--version"], capture_output=True, text=True)
    except OSError:
        return None
    return (done.stdout.splitlines() or [library.compiler()])[0] if done.returncode == 0 else None


def _triton() -> str:
    try:
        triton.load()
    except Unavailable as error:
        return f"not used: {error}"
    return importlib.metadata.version("triton")


def places() -> list[Finding]:
    """Return where runs and caches lie."""
    return [_store(), _caches()]


def _store() -> Finding:
    root = runs_root()
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("store", f"{root}: cannot be written to; DSV2_RUNS names another folder", wrong=True)
    held = f"runs: {len(list_runs())}" if root.is_dir() else "made by the first run"
    return Finding("store", f"{root.absolute()}, {held}, {shutil.disk_usage(there).free / 1e9:,.1f} GB free")


def _caches() -> Finding:
    kept = cache_folder("kernels")
    if kept is None:
        return Finding("caches", "none, since DSV2_CACHE=off: kernels are compiled in every process")
    return Finding("caches", f"{kept.parent}, {_size(kept.parent) / 1e6:,.0f} MB; may be deleted")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def missing() -> list[Finding]:
    """Return the packages that are missing, with what needs them; one line that says so if there are none."""
    found = []
    for extra, needed_for in ({"": "everything"} | EXTRAS).items():
        lacking = [name for name in required(extra) if not _installed(name)]
        if lacking:
            package = f"dsv2[{extra}]" if extra else "dsv2"
            state = f"{', '.join(lacking)}, for {needed_for}: pip install '{package}'"
            found.append(Finding("missing", state, wrong=not extra))
    return found or [Finding("missing", "nothing")]


def required(extra: str) -> list[str]:
    """Return the packages that dsv2, or one of its extras, requires here; `""` is dsv2 without extras."""
    found = []
    for requirement in map(Requirement, importlib.metadata.requires("dsv2") or []):
        of_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        here = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if here and of_extra == bool(extra):
            found.append(requirement.name)
    return found


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
