"""Decoding from MLA's cached latents on a GPU, in Triton against torch's SDPA on the absorbed form, in bfloat16.

    python -m benchmarks.gpu_mla_decode [V2-Lite V2] [--rounds 50]

One step of one layer, from absorbed queries to weighted latents, for several batches and contexts, with the cache in
bfloat16, int8 and float8. SDPA gets latents and rotated keys joined in memory, and the heads as queries of one key
head, which is its fastest form. Before anything is timed, every side must agree with float32. Sides take turns, each
with the L2 cache flushed before; the table gives GB/s of cache that is read at the median time, the share of what a
copy reaches here, and the middle half of the pairwise ratios. Writes `benchmarks/results/gpu_mla_decode.json`; exits 2
without a GPU.
"""

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.choice import using
from dsv2.kernels.mla_decode import mla_decode, quantised
from dsv2.kernels.unavailable import Unavailable

HEADS = {"V2-Lite": 16, "V2": 128}
LATENT, ROPE = 512, 64
SCALE = 192**-0.5
SIZES = ((1, 4096), (1, 65536), (16, 4096), (64, 8192))  # requests, tokens of each
BFLOAT16, SDPA = "triton, bfloat16", "torch SDPA"
QUANTISED = {"triton, int8": torch.int8, "triton, float8": torch.float8_e4m3fn}
WARM_UP = 10  # rounds
TOLERANCE = 0.02  # largest difference over the largest output: weights and outputs are rounded to 2^-9
FLUSH = 2**29  # bytes: ten times the L2 cache of an H100

Side = tuple[Callable[[], Tensor], int]  # a step, (B, H, C), and the bytes of cache that it reads


def sides_of(heads: int, batch: int, length: int, device: torch.device) -> dict[str, Side]:
    """Every side on the same random numbers; exits where one does not agree with float32."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    q_latent, q_rope = normal(batch, heads, LATENT), normal(batch, heads, ROPE)
    c_kv, k_rope = normal(batch, length, LATENT), normal(batch, length, ROPE)
    lengths = torch.full((batch,), length, device=device)
    q, k = (torch.cat(pair, -1)[:, None] for pair in ((q_latent, q_rope), (c_kv, k_rope)))

    def triton(latents: Tensor, scales: Tensor | None = None) -> Tensor:
        with using("triton"):
            return mla_decode(q_latent, q_rope, latents, k_rope, lengths, scale=SCALE, scales=scales)

    def sdpa() -> Tensor:
        return F.scaled_dot_product_attention(q, k, k[..., :LATENT], scale=SCALE)[:, 0]

    caches: dict[str, tuple[Tensor, Tensor | None]] = {BFLOAT16: (c_kv, None)}
    caches |= {name: quantised(c_kv, dtype) for name, dtype in QUANTISED.items() if supported(dtype, device)}
    sides: dict[str, Side] = {SDPA: (sdpa, _size(k))}
    for name, (latents, scales) in caches.items():
        sides[name] = partial(triton, latents, scales), _size(latents) + _size(scales) + _size(k_rope)
    for name, (step, _) in sides.items():
        latents, scales = caches.get(name, (c_kv, None))
        check(name, step(), (q_latent, q_rope, latents, k_rope), scales)
    return sides


def supported(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the GPU converts numbers of this dtype."""
    return dtype == torch.int8 or torch.cuda.get_device_capability(device) >= (8, 9)


def check(name: str, got: Tensor, parts: tuple[Tensor, ...], scales: Tensor | None) -> None:
    """Exit unless the outputs of the first and the last request agree with float32."""
    lengths = torch.tensor([parts[2].shape[1]], device=got.device)
    for row in {0, len(got) - 1}:
        of_row = None if scales is None else scales[row : row + 1]
        q_latent, q_rope, latents, k_rope = (x[row : row + 1].float() for x in parts)
        exact = reference.mla_decode(q_latent, q_rope, latents, k_rope, lengths, scale=SCALE, scales=of_row)
        difference = float((got[row] - exact[0]).abs().max() / exact.abs().max())
        if not difference <= TOLERANCE:  # NaN too
            sys.exit(f"{name}: off by {difference:.1e} of the largest output; nothing is timed")


def _size(x: Tensor | None) -> int:
    """Bytes of a tensor."""
    return 0 if x is None else x.numel() * x.element_size()


def seconds(step: Callable[[], Any], scratch: Tensor) -> float:
    """How long the GPU takes for what a step launches, after a flush that also hides the time of launching."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    scratch.zero_()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copy_bandwidth(scratch: Tensor) -> float:
    """Bytes per second, read and written, of a copy within the GPU's memory: median of 20."""
    source, target = torch.zeros(2, 2**30, dtype=torch.uint8, device=scratch.device)
    times = [seconds(lambda: target.copy_(source), scratch) for _ in range(WARM_UP + 20)][WARM_UP:]
    return 2 * source.numel() / statistics.median(times)


def measure(name: str, batch: int, length: int, rounds: int, scratch: Tensor, best: float) -> list[dict[str, Any]]:
    """A row for each side."""
    sides = sides_of(HEADS[name], batch, length, scratch.device)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(WARM_UP + rounds):
        for side, (step, _) in sides.items():
            taken = seconds(step, scratch)
            if number >= WARM_UP:
                times[side].append(taken)
    rows = []
    for side, (_, size) in sides.items():
        ratios = [theirs / mine for mine, theirs in zip(times[side], times[SDPA], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = size / statistics.median(times[side])
        row = {"shape": name, "batch": batch, "context": length, "side": side, "cache_mib": round(size / 2**20, 1)}
        row |= {"gb_per_s": round(rate / 1e9, 1), "share_of_copy": round(rate / best, 3)}
        row |= {"microseconds": [round(1e6 * value, 1) for value in statistics.quantiles(times[side], n=4)]}
        rows.append(row | {"ratio": round(middle, 3), "ratio_middle_half": [round(low, 3), round(high, 3)]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[*HEADS, []], default=[], metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    try:
        with using("triton"):
            scratch = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    except Unavailable as error:
        print(f"nothing is measured: {error}", file=sys.stderr)
        sys.exit(2)
    best = copy_bandwidth(scratch)
    machine = torch.cuda.get_device_name(scratch.device)
    table = Table(title=f"One step of MLA's decoding, {machine}; a copy reaches {best / 1e9:.0f} GB/s")
    for column in ("shape", "batch", "context", "side", "us", "GB/s", "of copy", "ratio", "middle half"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = []
    for name in arguments.shapes or HEADS:
        for batch, length in SIZES:
            for row in measure(name, batch, length, arguments.rounds, scratch, best):
                rows.append(row)
                low, high = row["ratio_middle_half"]
                table.add_row(
                    *(name, str(batch), f"{length:,}", row["side"], f"{row['microseconds'][1]:.1f}"),
                    *(f"{row['gb_per_s']:,.0f}", f"{row['share_of_copy']:.0%}"),
                    *(f"{row['ratio']:.2f}x", f"{low:.2f}-{high:.2f}"),
                )
    Console().print(table)
    import triton

    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__}
    whole: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions}
    whole |= {"copy_gb_per_s": round(best / 1e9, 1), "rows": rows}
    result = Path(__file__).parent / "results" / "gpu_mla_decode.json"
    result.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
