"""The routed experts of one layer on a GPU, in Triton against torch's grouped_mm, forward and backward, in bfloat16.

    python -m benchmarks.gpu_grouped_experts [V2-Lite V2] [--tokens 8192] [--rounds 20]

Both sides do all that the layer does from the choice of experts to the weighted sums, with equal and with skewed load.
Before anything is timed, both run in bfloat16 on a part of the tokens beside float32: values and every gradient in
Triton must be no further from it than twice what torch's are. Sides take turns; the table gives TFLOPS of the matmuls
at the median time, the share of what a matmul of 8192 x 8192 matrices reaches here, and the middle half of the
pairwise ratios. Writes `benchmarks/results/gpu_grouped_experts.json`; exits 2 without a GPU.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.choice import using
from dsv2.kernels.dispatch import LOCAL
from dsv2.kernels.experts import routed_experts
from dsv2.kernels.grouped import grouped
from dsv2.kernels.swiglu import swiglu
from dsv2.kernels.unavailable import Unavailable
from dsv2.models.moe.router import Routing

SHAPES = {"V2-Lite": (2048, 64, 1408, 6), "V2": (5120, 160, 1536, 6)}  # d, experts, their width, experts per token
WARM_UP, CHECKED = 5, 512  # rounds; tokens beside float32
LEAVES = ("x", "gates", "w_gate_up", "w_down")
Inputs = tuple[Tensor, ...]  # x, experts, gates, w_gate_up, w_down


def in_torch(
    x: Tensor,
    experts: Tensor,
    gates: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    multiply: Callable[[Tensor, Tensor, Tensor], Tensor] = grouped,
) -> Tensor:
    affinities = gates.new_empty(*gates.shape[:2], len(w_down))  # of which only the shape matters
    rows, counts, ticket = LOCAL.dispatch(x, Routing(affinities, experts, gates))
    hidden = swiglu(multiply(rows, counts, w_gate_up))
    return LOCAL.combine(multiply(hidden, counts, w_down), ticket)


SIDES: dict[str, Callable[..., Tensor]] = {"triton": routed_experts, "torch": in_torch}  # by their `kernels`


def inputs_of(name: str, tokens: int, load: str, device: torch.device) -> Inputs:
    """Random inputs; a skewed load has experts chosen in proportion to 1, 1/2, 1/3 and so on."""
    d, num_experts, width, top_k = SHAPES[name]
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    if load == "equal":
        experts = (torch.arange(tokens * top_k, device=device) % num_experts).view(1, tokens, top_k)
    else:
        likely = 1 / torch.arange(1.0, num_experts + 1, device=device)
        experts = torch.multinomial(likely.expand(tokens, -1), top_k, generator=generator)[None]
    gates = torch.rand(1, tokens, top_k, generator=generator, device=device)
    weights = normal(num_experts, d, 2 * width) / d**0.5, normal(num_experts, width, d) / width**0.5
    return normal(1, tokens, d), experts, gates, *weights


def differentiated(side: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """The output of a side, and its inputs' copies that it is differentiated by."""
    x, experts, *others = inputs
    x, *others = (part.detach().requires_grad_() for part in (x, *others))
    return side(x, experts, *others), [x, *others]


def check(inputs: Inputs) -> dict[str, float]:
    """Errors of Triton's values and gradients over torch's, both beside float32; exits where one is more than two."""
    x, experts, gates, *weights = inputs
    few = (x[:, :CHECKED], experts[:, :CHECKED], gates[:, :CHECKED], *weights)
    grad = torch.randn_like(few[0])

    def results(side: Callable[..., Tensor], *parts: Tensor) -> list[Tensor]:
        out, leaves = differentiated(side, parts)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    loop = partial(in_torch, multiply=reference.grouped)
    exact = results(loop, *(part.float() if part.is_floating_point() else part for part in few))
    errors: dict[str, list[float]] = {}
    for side, function in SIDES.items():
        with using(side):
            got = results(function, *few)
        errors[side] = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
    ratios = {
        name: mine / max(theirs, 1e-9)
        for name, mine, theirs in zip(("out", *LEAVES), errors["triton"], errors["torch"], strict=True)
    }
    for name, ratio in ratios.items():
        if not ratio <= 2:  # NaN too
            sys.exit(f"{name}: Triton's error is {ratio:.1f} times torch's; nothing is timed")
    return ratios


class Clock:
    """Measures calls while the GPU is busy with a large matmul at first, so that no launch is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.a, self.b, self.product = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(3))

    def seconds(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """How long the GPU takes for what a call launches, and what the call returns."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._multiply()
        start.record()
        result = call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result

    def peak(self) -> float:
        """FLOPs per second of that matmul: of random numbers, which the GPU's power and clock depend on; median."""
        times = [self.seconds(self._multiply)[0] for _ in range(WARM_UP + 20)][WARM_UP:]
        return 2 * 8192**3 / statistics.median(times)

    def _multiply(self) -> None:
        torch.mm(self.a, self.b, out=self.product)


def measure(name: str, tokens: int, load: str, rounds: int, clock: Clock, best: float) -> list[dict[str, Any]]:
    """A row for forward and one for backward."""
    inputs = inputs_of(name, tokens, load, clock.a.device)
    errors = check(inputs)
    grad = torch.randn_like(inputs[0])
    times: dict[str, dict[str, list[float]]] = {
        pass_: {side: [] for side in SIDES} for pass_ in ("forward", "backward")
    }
    memory: dict[str, float] = {}
    for number in range(WARM_UP + rounds):
        for side, function in SIDES.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with using(side):
                forward, (out, leaves) = clock.seconds(partial(differentiated, function, inputs))
                backward, gradients = clock.seconds(partial(torch.autograd.grad, out, leaves, grad))
            memory[side] = (torch.cuda.max_memory_allocated() - before) / 2**30
            del out, leaves, gradients
            if number >= WARM_UP:
                times["forward"][side].append(forward)
                times["backward"][side].append(backward)
    d, _, width, top_k = SHAPES[name]
    flops = {"forward": 6 * tokens * top_k * d * width, "backward": 12 * tokens * top_k * d * width}
    rows = []
    for pass_, of_side in times.items():
        ratios = [theirs / mine for mine, theirs in zip(of_side["triton"], of_side["torch"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = {side: flops[pass_] / statistics.median(taken) for side, taken in of_side.items()}
        row = {"shape": name, "tokens": tokens, "load": load, "pass": pass_}
        row |= {"tflops": {side: round(value / 1e12, 1) for side, value in rate.items()}}
        row |= {"share_of_peak": {side: round(value / best, 3) for side, value in rate.items()}}
        row |= {"milliseconds": {side: _spread(taken) for side, taken in of_side.items()}}
        row |= {"ratio": round(middle, 3), "ratio_middle_half": [round(low, 3), round(high, 3)]}
        row |= {"peak_gib": {side: round(value, 2) for side, value in memory.items()}}
        rows.append(row | {"error_over_torchs": {key: round(value, 2) for key, value in errors.items()}})
    return rows


def _spread(times: list[float]) -> list[float]:
    """Quartiles, in milliseconds."""
    return [round(1e3 * value, 3) for value in statistics.quantiles(times, n=4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], default=[], metavar="SHAPE")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    try:
        with using("triton"):
            clock = Clock(torch.device("cuda"))
    except Unavailable as error:
        print(f"nothing is measured: {error}", file=sys.stderr)
        sys.exit(2)
    best, machine = clock.peak(), torch.cuda.get_device_name()
    console, rows = Console(), []
    table = Table(
        title=f"Routed experts, {arguments.tokens} tokens, bfloat16, {machine}: TFLOPS; peak {best / 1e12:.0f}"
    )
    for column in ("shape", "load", "pass", *(f"{side}, of peak" for side in SIDES), "ratio", "middle half"):
        table.add_column(column, justify="right")
    for name in arguments.shapes or SHAPES:
        for load in ("equal", "skewed"):
            for row in measure(name, arguments.tokens, load, arguments.rounds, clock, best):
                rows.append(row)
                sides = (f"{row['tflops'][side]:.0f}, {row['share_of_peak'][side]:.0%}" for side in SIDES)
                low, high = row["ratio_middle_half"]
                table.add_row(name, load, row["pass"], *sides, f"{row['ratio']:.2f}x", f"{low:.2f}-{high:.2f}")
    console.print(table)
    import triton

    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__}
    result = Path(__file__).parent / "results" / "gpu_grouped_experts.json"
    whole = {"machine": machine, "versions": versions, "peak_tflops": round(best / 1e12, 1), "rows": rows}
    result.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
