"""Triton kernels without a GPU are interpreted on the CPU, about 10 ms per program and step of a loop.

Nothing but a test can see an access out of bounds there, so each buffer lies between canaries.
"""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from dsv2.kernels.choice import using
from dsv2.kernels.triton import device
from tests.references import fences

if importlib.util.find_spec("triton") is None:  # there is none for macOS and Windows
    collect_ignore_glob = ["test_[!d]*.py"]
else:
    with pytest.MonkeyPatch.context() as environment:
        if not torch.cuda.is_available():
            environment.setenv("TRITON_INTERPRET", "1")
        device.import_ops()


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of kernels takes tensors of the CPU, unless there is a GPU."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def triton_ops(interpreter: None) -> Iterator[None]:
    """Public functions call the Triton ops; memory that they ask for is full of NaN and lies between canaries."""
    with using("triton"), fences.watched():
        yield
