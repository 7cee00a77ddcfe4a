"""Compile every Triton kernel for A100 (sm_80) and H100 (sm_90), without a GPU, and check what each needs of it.

    python -m benchmarks.aot_kernels [op ...] [--write]

Calls the ops of `benchmarks/aot_cases` with tensors that have a shape and no memory, and compiles each launch as Triton
would at that call: the same blocks, warps, dtypes and alignment. Prints a table; exits 1 if a kernel needs more shared
memory than a block may have, has too large a grid, or differs from benchmarks/results/aot_kernels.json in anything;
`--write` stores the table there instead. Registers and spills depend on Triton's version, which the file names.
"""

import argparse
import importlib
import itertools
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks import aot_cases
from dsv2.kernels.choice import using
from dsv2.kernels.triton import device

RESULT = Path(__file__).parent / "results" / "aot_kernels.json"
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block may have, by architecture
GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Launch(NamedTuple):
    kernel: JITFunction
    args: tuple[Any, ...]
    options: dict[str, Any]  # constants, warps and stages
    grid: tuple[int, ...]


class Recorder(TorchDispatchMode):
    """Runs the ops' own code for tensors without memory, where torch would only infer shapes; nothing is launched."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "dsv2_triton":
            return func(*args, **(kwargs or {}))
        with self:
            return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))

    @contextmanager
    def listening(self, capability: int) -> Iterator[None]:
        """Ops called within are Triton's, on a device of this capability."""

        def run(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
            self.launches.append(Launch(kernel, args, options, grid))

        with (
            mock.patch.object(device, "load", device.import_ops),
            mock.patch.object(device, "runs_on", lambda place: place.type == "meta"),
            mock.patch.object(device, "capability", return_value=capability),
            mock.patch.object(JITFunction, "run", run),
            using("triton"),
            self,
        ):
            yield


def launches(case: aot_cases.Case, capability: int) -> list[Launch]:
    """What a call and its backward launch on a GPU of this capability."""
    recorder = Recorder()
    with recorder.listening(capability):
        outs = case.function(*case.inputs)
        outs = [out for out in ((outs,) if isinstance(outs, torch.Tensor) else outs) if out.requires_grad]
        if outs:
            torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])
    assert recorder.launches, f"{case.name} launches nothing"
    return recorder.launches


def build(launch: Launch, capability: int) -> dict[str, int]:
    """Compile a launch: what it needs of a multiprocessor, and how many instructions are for tensor cores."""
    target = GPUTarget("cuda", capability, 32)
    backend, kernel = make_backend(target), launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*launch.args, **launch.options)
    options, *source = kernel._pack_args(backend, launch.options, bound, specialization, rest)
    compiled = triton.compile(ASTSource(kernel, *source), target=target, options=dict(options.__dict__))
    usage, ptx = resources(compiled.asm["cubin"]), compiled.asm["ptx"]
    return {
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
        "shared": compiled.metadata.shared,
        "registers": usage["REG"],
        "spilled": usage["STACK"],
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx)),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers (REG), bytes of stack (STACK) and more of each thread, which NVIDIA's tool reads from a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", said)}


def rows(op: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the name of every launch of an op and what it needs; exit where that is more than there is."""
    module = importlib.import_module(f"{aot_cases.__name__}.{op}")
    for capability, (dtype_name, dtype) in itertools.product(SHARED, DTYPES.items()):
        for case in module.cases(dtype):
            seen: Counter[str] = Counter()
            for launch in launches(case, capability):
                kernel = f"{launch.kernel.module.rpartition('.')[2]}.{launch.kernel.__name__}"
                seen[kernel] += 1
                name = f"{op}, {case.name}, {dtype_name}, sm_{capability}: {kernel}"
                name += f" {seen[kernel]}" if seen[kernel] > 1 else ""
                needs = build(launch, capability)
                if needs["shared"] > SHARED[capability]:
                    sys.exit(f"{name}: {needs['shared']} bytes of shared memory; a block has {SHARED[capability]}")
                if any(size > most for size, most in zip(launch.grid, GRID, strict=False)):
                    sys.exit(f"{name}: grid {launch.grid}; the largest is {GRID}")
                yield name, needs


def show(name: str, needs: dict[str, int]) -> None:
    columns = zip(needs.values(), (5, 6, 7, 9, 7, 4, 5), strict=True)
    print(f"{name:70} {' '.join(f'{value:{width}}' for value, width in columns)}", flush=True)


def main() -> None:
    every = [module.name for module in pkgutil.iter_modules(aot_cases.__path__)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=every, help=", ".join(every))
    parser.add_argument("--write", action="store_true", help="store the table of these ops")
    arguments = parser.parse_args()
    print(f"{'':70} warps stages  shared registers spilled  mma wgmma")
    now = {}
    for op in arguments.ops:
        for name, needs in rows(op):
            now[name] = needs
            show(name, needs)
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {"triton": triton.__version__, "kernels": {}}
    before = {name: needs for name, needs in stored["kernels"].items() if name.split(",")[0] in arguments.ops}
    if arguments.write:
        store({name: needs for name, needs in stored["kernels"].items() if name not in before} | now)
        return
    different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    for name in different:
        print(f"{name}: stored {before.get(name)} of Triton {stored['triton']}, now {now.get(name)}", file=sys.stderr)
    sys.exit(bool(different))


def store(kernels: dict[str, dict[str, int]]) -> None:
    """Write the table, a line for each kernel."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(needs)}" for name, needs in sorted(kernels.items()))
    RESULT.write_text(f'{{\n "triton": "{triton.__version__}",\n "kernels": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    main()
