"""Rates of GPUs say where they are from."""

import pytest

from dsv2.accounting.cost import H800_PEAK
from dsv2.config import ConfigError
from dsv2.distributed.hardware import GPUS, gpu_named


def test_every_gpu_has_a_source_and_rates_that_can_be():
    for name, gpu in GPUS.items():
        assert gpu_named(name) is gpu
        assert gpu.source
        assert gpu.peak_flops > gpu.nvlink > gpu.network > 0
    assert gpu_named("h800").peak_flops == H800_PEAK


def test_another_name():
    with pytest.raises(ConfigError, match="gpu='b200' is not valid: one of h800, h100"):
        gpu_named("b200")
