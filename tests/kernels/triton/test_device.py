"""Where Triton kernels can run."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from dsv2.kernels.triton import device
from dsv2.kernels.unavailable import Unavailable


def test_interpreted_kernels_run_on_the_cpu_and_compiled_ones_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, kind in (("1", "cpu"), ("0", "cuda")):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert device.runs_on(torch.device(kind))
        assert not device.runs_on(torch.device("meta"))


def test_without_triton_or_a_device_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(Unavailable, match="no CUDA device"):
        device.load()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"triton is not installed; install dsv2\[gpu\]"):
        device.load()


def test_kernels_are_chosen_by_the_capability_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (8, 9))
    assert device.capability(torch.device("cuda")) == 89
    assert device.capability(torch.device("cpu")) == 90


def test_loading_registers_the_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are to be interpreted; a second time is no error."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    device.load()
    assert {"rms_norm", "rotate", "swiglu", "head_loss"} <= set(dir(torch.ops.dsv2_triton))


def test_plain_torch_imports_no_triton_ops() -> None:
    code = "import sys, dsv2.models.transformer; print({'triton', 'dsv2.kernels.triton.norm'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
