"""Which implementation runs, and for which tensors."""

import pytest
import torch

from dsv2.kernels.choice import compiled, in_use, using
from dsv2.kernels.cpu import library

pytestmark = pytest.mark.usefixtures("kept_kernels")


def test_compiled_ops_take_float32_on_the_cpu_alone() -> None:
    single = torch.ones(2)
    for kernels in ("cpu", "auto"):
        with using(kernels):
            assert compiled("norm", single, single)
            assert not compiled("norm", single, single.double())
            assert not compiled("norm", single.bfloat16())
            assert not compiled("norm", torch.ones(2, device="meta"))


def test_the_choice_ends_with_its_context() -> None:
    with using("torch"):
        assert in_use(torch.device("cpu")) == "torch"
        with using("cpu"):
            assert in_use(torch.device("cpu")) == "cpu"
        assert not compiled("norm", torch.ones(2))
    assert in_use(torch.device("cpu")) == "torch"


def test_single_ops_can_be_chosen() -> None:
    with using("cpu", ["swiglu"]):
        assert compiled("swiglu", torch.ones(2))
        assert not compiled("norm", torch.ones(2))


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kernels='gpu': must be one of auto, torch, cpu"), using("gpu"):
        pass


def test_without_compiled_ops_plain_torch_runs_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise library.Unavailable("there is no C++ compiler 'c++'")

    monkeypatch.setattr(library, "load", missing)
    library.available.cache_clear()
    try:
        with pytest.raises(library.Unavailable, match="no C"), using("cpu"):
            pass
        with using("auto"):
            assert in_use(torch.device("cpu")) == "torch"
    finally:
        library.available.cache_clear()
