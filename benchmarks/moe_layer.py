"""A MoE layer, forward and backward, against a dense FFN with as many FLOPs per token, for 8 to 160 experts.

    python -m benchmarks.moe_layer [--experts 8 16 64 160] [--threads 2] [--rounds 15]

Model width 256, 2,048 tokens, 6 experts of width 64 for each token and 2 shared ones, float32; the dense FFN has their
width together. The load is even, or skewed: the experts of a token are drawn with odds of 1/rank, so that the first
expert of 64 has 13 times the mean load. Experts are replayed, so that both loads cost the same router. Values and
gradients of the two kernels must agree before anything is timed. Sides take turns; the table gives the median of the
ratios to the dense FFN, 1 being as fast, and their middle half. Writes `benchmarks/results/moe_layer.json`.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dsv2.kernels.choice import using
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import MoE
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.router import Routing

WIDTH, TOKENS, TOP_K, SHARED, EXPERT = 256, (8, 256), 6, 2, 64
WARM_UP = 3
TOLERANCE = 1e-5  # of the largest element
KERNELS, LOADS = ("torch", "cpu"), ("even", "skewed")


def experts_of(load: str, num_experts: int) -> Tensor:
    """Draw the experts of every token: (B, T, K)."""
    odds = torch.ones(num_experts) if load == "even" else 1 / torch.arange(1.0, num_experts + 1)
    drawn = torch.multinomial(odds.expand(TOKENS[0] * TOKENS[1], -1), TOP_K, generator=torch.Generator().manual_seed(0))
    return drawn.view(*TOKENS, TOP_K)


def moe_step(num_experts: int, load: str, kernels: str) -> tuple[Callable[[], float], Callable[[], list[Tensor]]]:
    """Return a function that runs the layer and returns its seconds, and one that returns its gradients."""
    config = MoE.Config(num_experts=num_experts, top_k=min(TOP_K, num_experts), expert_dim=EXPERT, num_shared=SHARED)
    layer, u, grad = config.build(WIDTH), torch.randn(*TOKENS, WIDTH, requires_grad=True), torch.randn(*TOKENS, WIDTH)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in (*layer.parameters(), u, grad):
            weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    experts = experts_of(load, num_experts)
    replay = Routing(torch.empty(*TOKENS, num_experts), experts, torch.empty(experts.shape))

    def forward_backward() -> Tensor:
        with using(kernels):
            out, _ = layer(u, Hints(replay=replay))
        out.backward(grad)
        return out.detach()

    def gradients() -> list[Tensor]:
        out = forward_backward()
        parts = [out, *(part.grad.clone() for part in (u, *layer.parameters()) if part.grad is not None)]
        clear()
        return parts

    def clear() -> None:
        for part in (u, *layer.parameters()):
            part.grad = None

    return timed(forward_backward, clear), gradients


def dense_step() -> Callable[[], float]:
    layer = SwiGLU.Config(width=(TOP_K + SHARED) * EXPERT).build(WIDTH)
    u, grad = torch.randn(*TOKENS, WIDTH, requires_grad=True), torch.randn(*TOKENS, WIDTH)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0, 0.05)

    def forward_backward() -> None:
        with using("cpu"):
            layer(u).backward(grad)

    def clear() -> None:
        for part in (u, *layer.parameters()):
            part.grad = None

    return timed(forward_backward, clear)


def timed(action: Callable[[], Any], clear: Callable[[], None]) -> Callable[[], float]:
    def step() -> float:
        started = time.perf_counter()
        action()
        seconds = time.perf_counter() - started
        clear()
        return seconds

    return step


def measure(num_experts: int, rounds: int) -> list[dict[str, Any]]:
    sides = {(load, kernels): moe_step(num_experts, load, kernels) for load in LOADS for kernels in KERNELS}
    for load in LOADS:
        plain, compiled = (sides[load, kernels][1]() for kernels in KERNELS)
        for one, other in zip(plain, compiled, strict=True):
            off = ((one - other).abs().max() / one.abs().max()).item()
            if off > TOLERANCE:
                sys.exit(f"{num_experts} experts, {load} load: the compiled op is off by {off:.1e}; nothing is timed")
    dense, steps = dense_step(), {side: step for side, (step, _) in sides.items()}
    for step in (dense, *steps.values()):
        for _ in range(WARM_UP):
            step()
    ratios: dict[tuple[str, str], list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        yardstick = dense()
        for side, step in steps.items():
            ratios[side].append(step() / yardstick)
    rows = []
    for (load, kernels), values in ratios.items():
        low, middle, high = (round(value, 3) for value in statistics.quantiles(values, n=4))
        row = {"experts": num_experts, "load": load, "kernels": kernels, "ratio": middle, "middle_half": [low, high]}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 64, 160])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [row for num_experts in arguments.experts for row in measure(num_experts, arguments.rounds)]
    table = Table(title=f"Seconds over those of a dense FFN of equal FLOPs, threads: {arguments.threads}")
    for column in ("experts", "load", "kernels", "ratio", "middle half"):
        table.add_column(column, justify="left" if column in ("load", "kernels") else "right")
    for row in rows:
        low, high = row["middle_half"]
        table.add_row(str(row["experts"]), row["load"], row["kernels"], f"{row['ratio']:.2f}", f"{low:.2f}-{high:.2f}")
    Console().print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    kept = {"machine": machine, "torch": torch.__version__, "threads": arguments.threads, "rows": rows}
    path = Path(__file__).parent / "results" / "moe_layer.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
