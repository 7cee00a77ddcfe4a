"""Where Triton kernels can run."""

import importlib.util

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
