"""The options that say what `python -m dsv2 simulate` computes with: GPU, its efficiency, and micro-batches."""

import argparse
from typing import TYPE_CHECKING

from dsv2.config import ConfigError

if TYPE_CHECKING:
    from dsv2.distributed.hardware import GPU

PRECISION = "bf16"  # of matrix products, which the peaks of GPUs are of
BYTES = 2  # of an element that is sent


def add_machine(parse: argparse.ArgumentParser, *, efficiency: bool = True) -> None:
    """Declare the options; `efficiency` unless the command computes it."""
    parse.add_argument("--context", type=int, default=4096, metavar="N", help="tokens per sequence (default 4096)")
    parse.add_argument(
        "--sequences", type=int, default=1, metavar="N", help="of a micro-batch on one device (default 1)"
    )
    parse.add_argument("--gpu", default="h800", metavar="NAME", help="h800 (default), h100, h200 or a100")
    if efficiency:
        parse.add_argument(
            "--efficiency",
            type=float,
            default=0.5,
            metavar="X",
            help="of kernels, as a share of the peak (default 0.5)",
        )
    parse.add_argument("--json", action="store_true", help="machine-readable")


def machine_of(arguments: argparse.Namespace) -> "GPU":
    """Return the GPU. Raises ConfigError for it and for the other options."""
    from dsv2.distributed.hardware import gpu_named

    for name in ("context", "sequences"):
        if not 1 <= (value := getattr(arguments, name)) <= 10**9:
            raise ConfigError(name, value, "1 to 1,000,000,000")
    efficiency = getattr(arguments, "efficiency", 1.0)
    if not 0 < efficiency <= 1:
        raise ConfigError("efficiency", efficiency, "above 0 and at most 1")
    return gpu_named(arguments.gpu)
