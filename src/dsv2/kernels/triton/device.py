"""Where the Triton kernels run: on CUDA devices, and under TRITON_INTERPRET=1 on the CPU, slowly, for tests."""

import importlib
import importlib.util
import os
import pkgutil

import torch

from dsv2.kernels import triton as package
from dsv2.kernels.unavailable import Unavailable


def load() -> None:
    """Register the ops `torch.ops.dsv2_triton`; raise Unavailable unless Triton is installed and has a device."""
    if importlib.util.find_spec("triton") is None:
        raise Unavailable("triton is not installed; install dsv2[gpu]")
    if not (torch.cuda.is_available() or interpreted()):
        raise Unavailable("torch finds no CUDA device")
    import_ops()


def import_ops() -> None:
    """Import every file of kernels; each registers its ops.

    Products and sums are fused into one rounding, whatever TRITON_DEFAULT_FP_FUSION says.
    """
    importlib.import_module("triton").knobs.language.default_fp_fusion = True
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def interpreted() -> bool:
    """Return whether Triton interprets kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_on(device: torch.device) -> bool:
    return device.type == ("cpu" if interpreted() else "cuda")


def capability(device: torch.device) -> int:
    """Return the compute capability times 10, 80 on an A100 and 90 on an H100; kernels are interpreted as for 90."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
