"""Every Triton kernel compiles for A100 and H100 and needs what is stored of each."""

import os
import pkgutil
import subprocess
import sys

import pytest

from dsv2.kernels import triton


@pytest.mark.slow
def test_kernels_compile_within_the_limits_and_as_stored() -> None:
    """In a process of its own: Triton compiles nothing in one that interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_file_of_kernels_has_cases() -> None:
    from benchmarks import aot_cases

    kernels = {module.name for module in pkgutil.iter_modules(triton.__path__)} - {
        "device",
        "layout",
        "grouped",
    }  # grouped: part of the experts
    assert kernels == {module.name for module in pkgutil.iter_modules(aot_cases.__path__)}
