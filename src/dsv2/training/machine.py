"""Process and machine: set-up for training, peak FLOP rate and provenance."""

import ctypes
import gc
import importlib.metadata
import logging
import platform
import subprocess
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dsv2.config import ConfigError
from dsv2.kernels.choice import in_use, using
from dsv2.kernels.unavailable import Unavailable

PACKAGES = ("dsv2", "torch", "lightning", "numpy", "tokenizers")
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h


# ---- set-up ----------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Set up a training process: quiet Lightning, reuse freed memory, spare what is imported from garbage collection.

    Call once, after the imports and before the first step.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    keep_freed_memory()
    if not gc.get_freeze_count():  # later on, it would keep the garbage of earlier runs
        gc.freeze()


def require_accelerator(accelerator: str) -> None:
    """Raise ConfigError if `trainer.accelerator` asks for a GPU and torch finds none."""
    if accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ConfigError("trainer.accelerator", accelerator, "auto or cpu, since torch finds no GPU on this machine")


def require_kernels(kernels: str) -> None:
    """Raise ConfigError if `trainer.kernels` asks for kernels that cannot be had here."""
    try:
        with using(kernels):
            pass
    except Unavailable as error:
        raise ConfigError("trainer.kernels", kernels, f"torch or auto, since {error}") from None


def best_kernels(accelerator: str) -> str:
    """Return what `trainer.kernels=auto` means on the device that `trainer.accelerator` chooses here."""
    on_gpu = accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    with using("auto"):
        return "torch" if on_gpu else in_use(torch.device("cpu"))


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of mapping and faulting them in at every step; no-op elsewhere.

    `benchmarks/allocator.py` measures the gain: small on an idle machine, larger under memory contention.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # the maximum that glibc accepts
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


# ---- peak rate -------------------------------------------------------------------------------------------------------


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Measure the FLOPs per second of a large square matmul (best of six), once per process, in about 0.2 s."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192 if on_gpu else 768), (torch.bfloat16 if precision == "bf16" else torch.float32)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# ---- provenance ------------------------------------------------------------------------------------------------------


def provenance(device: torch.device) -> dict[str, Any]:
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": in_use(device),
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit and whether the checkout has uncommitted changes; None unless this file belongs to it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None  # no git, or an installed package
        return done.stdout.strip()

    tracked, commit = git("ls-files", "--error-unmatch", Path(__file__).name), git("rev-parse", "HEAD")
    return None if None in (tracked, commit) else {"commit": commit, "dirty": bool(git("status", "--porcelain"))}


def cpu_name() -> str:
    """Return the model of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
