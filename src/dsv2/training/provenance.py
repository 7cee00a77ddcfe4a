"""What a result was made with: code, libraries, machine and kernels."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("dsv2", "torch", "lightning", "numpy", "tokenizers")


def provenance(device: torch.device) -> dict[str, Any]:
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "kernels": {"grouped": "torch grouped_mm", "attention": "torch sdpa", "norm": "dsv2 autograd"},
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether the checkout differed from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None  # no git, or an installed package: provenance says so with null
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(git("status", "--porcelain"))}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
