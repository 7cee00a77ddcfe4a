"""Which implementation runs, and for which tensors."""

import pytest
import torch

from dsv2.kernels.choice import form, in_use, preferring, using
from dsv2.kernels.cpu import library
from dsv2.kernels.triton import device as triton
from dsv2.kernels.unavailable import Unavailable


def test_compiled_ops_take_float32_on_the_cpu_alone() -> None:
    single = torch.ones(2)
    for kernels in ("cpu", "auto"):
        with using(kernels):
            assert form("norm", single, single) == "cpu"
            for other in (single.double(), single.bfloat16(), torch.ones(2, device="meta")):
                assert form("norm", single, other) == "torch"


def test_the_choice_ends_with_its_context() -> None:
    with using("torch"):
        assert in_use(torch.device("cpu")) == "torch"
        with using("cpu"):
            assert in_use(torch.device("cpu")) == "cpu"
        assert form("norm", torch.ones(2)) == "torch"
    assert in_use(torch.device("cpu")) == "torch"


def test_a_preference_gives_way_to_a_choice() -> None:
    with preferring("cpu"):
        assert in_use(torch.device("cpu")) == "cpu"
    with using("torch"), preferring("cpu"):
        assert in_use(torch.device("cpu")) == "torch"


def test_single_ops_can_be_chosen() -> None:
    with using("cpu", ["swiglu"]):
        assert form("swiglu", torch.ones(2)) == "cpu"
        assert form("norm", torch.ones(2)) == "torch"


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kernels='gpu': must be one of auto, torch, cpu, triton"), using("gpu"):
        pass


def test_without_compiled_ops_plain_torch_runs_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise Unavailable("there is no C++ compiler 'c++'")

    monkeypatch.setattr(library, "load", missing)
    library.available.cache_clear()
    try:
        with pytest.raises(Unavailable, match="no C"), using("cpu"):
            pass
        with using("auto"):
            assert in_use(torch.device("cpu")) == "torch"
    finally:
        library.available.cache_clear()


def test_kernels_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise Unavailable("there is no GPU")

    monkeypatch.setattr(triton, "load", missing)
    with pytest.raises(Unavailable, match="there is no GPU"), using("triton"):
        pass


def test_triton_takes_single_and_half_precision_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "load", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with using("triton"):
        assert in_use(torch.device("cpu")) == "triton"
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert form("norm", torch.ones(2, dtype=dtype), torch.ones(2)) == "triton"
        for other in (torch.ones(2).double(), torch.ones(2, device="meta")):
            assert form("norm", torch.ones(2), other) == "torch"
        assert form("another op", torch.ones(2)) == "torch"
    with using("auto"):
        assert form("norm", torch.ones(2).bfloat16()) == "torch"
