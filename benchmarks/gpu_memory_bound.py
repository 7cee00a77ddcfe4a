"""Norm, RoPE, SwiGLU and the head's loss on a GPU, in Triton against plain torch, in bfloat16.

    python -m benchmarks.gpu_memory_bound

The calls of `benchmarks/aot_cases`, forward alone and with backward (the head's loss computes its gradients in
forward). Before a call is timed, values and gradients of both forms must agree. The table gives the time of the Triton
form, the share of a copy's bandwidth that it reaches (of the bytes that it must at least read and write), the ratio of
plain torch's time to its own, and the peak of the memory that each form allocates. Writes
`benchmarks/results/gpu_memory_bound.json`; exits 2 without a GPU.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.aot_cases import Case, cross_entropy, norm, rope, swiglu
from dsv2.kernels.choice import using
from dsv2.kernels.norm import add_rms_norm, rms_norm
from dsv2.kernels.rope import rotate
from dsv2.kernels.swiglu import swiglu as swiglu_op
from dsv2.kernels.unavailable import Unavailable

RESULT = Path(__file__).parent / "results" / "gpu_memory_bound.json"
TRAFFIC = {  # of forward, and with backward: times the bytes of the first input
    rms_norm: (2, 5),
    add_rms_norm: (4, 8),
    rotate: (2, 4),
    swiglu_op: (1.5, 4),
}
TOLERANCE = 0.02  # largest difference over the largest number: a few roundings to 2^-9
FORMS = ("torch", "triton")


def real(x: Any, seed: int) -> Any:
    """A tensor on the GPU with the shape and dtype of one without memory: normal numbers, or targets."""
    if not isinstance(x, Tensor):
        return x
    generator = torch.Generator("cuda").manual_seed(seed)
    if x.dtype == torch.int64:
        return torch.randint(cross_entropy.VOCABULARY, x.shape, generator=generator, device="cuda")
    made = torch.randn(x.shape, dtype=x.dtype, generator=generator, device="cuda")
    return made.requires_grad_(x.requires_grad)


class Call:
    """A case with inputs on the GPU, in one of the forms."""

    def __init__(self, case: Case, form: str) -> None:
        self.function, self.form = case.function, form
        self.inputs = [real(x, seed) for seed, x in enumerate(case.inputs)]
        self.leaves = [x for x in self.inputs if isinstance(x, Tensor) and x.requires_grad]

    def forward(self) -> tuple[Tensor, ...]:
        with using(self.form):
            outs = self.function(*self.inputs)
        return (outs,) if isinstance(outs, Tensor) else outs

    def whole(self) -> tuple[Tensor, ...]:
        """Forward and backward: values and gradients."""
        outs = self.forward()
        return *outs, *torch.autograd.grad(outs, self.leaves, [torch.ones_like(out) for out in outs])

    def peak(self) -> float:
        """MiB that forward and backward allocate beyond the inputs."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.whole()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def agree(name: str, calls: list[Call]) -> None:
    """Exit unless both forms give the same values and gradients."""
    for index, (a, b) in enumerate(zip(*(call.whole() for call in calls), strict=True)):
        a, b = a.detach().float(), b.detach().float()
        difference = float((a - b).abs().max() / a.abs().max())
        if not difference <= TOLERANCE:  # NaN too
            sys.exit(f"{name}: number {index} of values and gradients is off by {difference:.1e}; nothing is timed")


def microseconds(step: Callable[[], Any]) -> float:
    """Median time, with the L2 cache flushed before each."""
    from triton.testing import do_bench

    return 1e3 * do_bench(step, return_mode="median")


def rows() -> Iterator[dict[str, Any]]:
    source, target = torch.zeros(2, 2**30, dtype=torch.uint8, device="cuda")
    copied = 2 * source.numel() / microseconds(partial(target.copy_, source))  # bytes per microsecond
    del source, target
    for module in (norm, rope, swiglu, cross_entropy):
        for case in module.cases(torch.bfloat16):
            if not any(isinstance(x, Tensor) and x.requires_grad for x in case.inputs):
                continue
            name = f"{module.__name__.rpartition('.')[2]}, {case.name}"
            calls = [Call(case, form) for form in FORMS]
            agree(name, calls)
            peaks = [round(call.peak()) for call in calls]
            traffic = TRAFFIC.get(case.function, (None, None))
            for part, factor in zip(("forward", "whole"), traffic, strict=True):
                plain, own = (microseconds(getattr(call, part)) for call in calls)
                row = {"op": name, "part": part, "microseconds": round(own, 1), "ratio": round(plain / own, 2)}
                size = calls[0].inputs[0].nbytes
                row["share_of_copy"] = None if factor is None else round(factor * size / own / copied, 2)
                yield row | {"peak_mib": peaks[1], "peak_mib_torch": peaks[0]}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        with using("triton"):
            pass
    except Unavailable as error:
        print(f"nothing is measured: {error}", file=sys.stderr)
        sys.exit(2)
    done = []
    print(f"{'':40} part     microseconds of copy  ratio  MiB (torch)")
    for row in rows():
        done.append(row)
        share = "" if row["share_of_copy"] is None else f"{row['share_of_copy']:.0%}"
        print(
            f"{row['op']:40} {row['part']:8} {row['microseconds']:12,.1f} {share:>7} {row['ratio']:5.2f}x"
            f"  {row['peak_mib']:,} ({row['peak_mib_torch']:,})"
        )
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    machine = {"date": datetime.date.today().isoformat(), "machine": torch.cuda.get_device_name()}
    RESULT.write_text(json.dumps(machine | {"versions": versions, "rows": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
