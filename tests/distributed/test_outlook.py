"""What training will take, by hand."""

import pytest

from dsv2.accounting.account import account
from dsv2.accounting.cost import implied_mfu
from dsv2.distributed.outlook import HARDWARE, Need, Span, together
from dsv2.training.run import load


def test_time_is_flops_over_rate_with_the_range_the_other_way_round() -> None:
    need = Need(tokens=10, flops=600.0, memory=5.0, disk=7.0)
    assert need.seconds(Span(100.0, 200.0, 300.0)) == (2.0, 3.0, 6.0)
    assert together([need, need._replace(memory=9.0)]) == (20, 1200.0, 9.0, 14.0)
    assert together([]) == (0, 0, 0.0, 0.0)


@pytest.mark.parametrize("hardware", HARDWARE.values(), ids=lambda hardware: hardware.name)
def test_every_device_has_a_range_and_a_source(hardware) -> None:
    low, likely, high = hardware.utilisation
    assert 0 < low < likely < high < 1
    assert hardware.rate() == (low * hardware.peak_flops, likely * hardware.peak_flops, high * hardware.peak_flops)
    assert len(hardware.source) > 30


def test_the_range_contains_what_the_published_hours_imply() -> None:
    flops = account(load(["model=v2"]).model, context=4096).flops_per_token
    implied = implied_mfu(flops, 1e12, 172.8e3)
    assert f"{implied:.0%} of the peak" in HARDWARE["h100"].source
    assert HARDWARE["h100"].utilisation.low <= implied <= HARDWARE["h100"].utilisation.high
