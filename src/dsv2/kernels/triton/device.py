"""Where the Triton kernels run: on CUDA devices, and under TRITON_INTERPRET=1 on the CPU, slowly, for tests."""

import importlib.util
import os

import torch

from dsv2.kernels.unavailable import Unavailable


def load() -> None:
    """Raise Unavailable unless Triton is installed and has a device to run on."""
    if importlib.util.find_spec("triton") is None:
        raise Unavailable("triton is not installed; install dsv2[gpu]")
    if not (torch.cuda.is_available() or interpreted()):
        raise Unavailable("torch finds no CUDA device")


def interpreted() -> bool:
    """Return whether Triton interprets kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_on(device: torch.device) -> bool:
    return device.type == ("cpu" if interpreted() else "cuda")
