"""Every Triton kernel compiles for A100 and H100 and needs what is stored of each."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from dsv2.kernels import triton


@pytest.mark.slow
def test_kernels_compile_within_the_limits_and_as_stored() -> None:
    """In a process of its own: Triton compiles nothing in one that interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_kernel_that_is_launched_is_in_the_table() -> None:
    table = json.loads((Path(benchmarks.__path__[0]) / "results" / "aot_kernels.json").read_text())
    compiled = {name.rpartition(": ")[2].split()[0] for name in table["kernels"]}
    launched = {
        f"{path.stem}.{call.func.value.id}"
        for path in Path(triton.__path__[0]).glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript) and isinstance(call.func.value, ast.Name)
    }
    assert compiled == launched
