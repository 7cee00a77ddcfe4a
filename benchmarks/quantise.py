"""How fast codes of a quantised cache are packed, unpacked and decoded, in plain torch and as a compiled op.

    python -m benchmarks.quantise [--threads 1]

Latents of 512 channels, 512 of them at a time, which is what attention decodes. Unpacked codes must be those that were
packed, and both forms must decode to the same values, before anything is timed. Prints billions of codes per second,
the best of ten calls, and writes `benchmarks/results/quantise.json`.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dsv2.kernels.choice import using
from dsv2.kernels.quantise import PIECES, Grouped, pack, unpack

ROWS, WIDTH, CALLS = 512, 512, 10
COLUMNS = ("pack", "unpack", "decode", "decode, compiled", "encode")
TOLERANCE = 1e-5


def rate(call: Callable[[], Any]) -> float:
    """Billions of codes per second, in the best of CALLS calls."""
    call()
    best = float("inf")
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return ROWS * WIDTH / best / 1e9


def rates(bits: int) -> dict[str, float]:
    form, x = Grouped(WIDTH, bits), torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    held = form.encode(x)
    codes = unpack(held[0], bits, WIDTH)
    if not torch.equal(pack(codes, bits), held[0]):
        raise SystemExit(f"{bits} bits: unpacked codes are not those that were packed")
    plain = form.decode(*held)
    found = {
        "pack": rate(lambda: pack(codes, bits)),
        "unpack": rate(lambda: unpack(held[0], bits, WIDTH)),
        "decode": rate(lambda: form.decode(*held)),
        "encode": rate(lambda: form.encode(x)),
    }
    with using("cpu"):
        if (form.decode(*held) - plain).abs().max() > TOLERANCE:
            raise SystemExit(f"{bits} bits: the compiled op decodes to other values than plain torch")
        found["decode, compiled"] = rate(lambda: form.decode(*held))
    return {name: found[name] for name in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {bits: rates(bits) for bits in PIECES}
    table = Table(title=f"Billions of codes per second, threads: {arguments.threads}")
    for column in ("bits", *COLUMNS):
        table.add_column(column, justify="right")
    for bits, row in found.items():
        table.add_row(str(bits), *(f"{value:.2f}" for value in row.values()))
    Console().print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    kept = vars(arguments) | {"machine": machine, "torch": torch.__version__}
    kept |= {"rates": {bits: {name: round(value, 2) for name, value in row.items()} for bits, row in found.items()}}
    path = Path(__file__).parent / "results" / "quantise.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
