"""What GPU hours a training run takes, by hand."""

import pytest

from dsv2.accounting.cost import H800_PEAK, implied_mfu, training_cost
from dsv2.config import ConfigError


def test_training_cost_by_hand():
    cost = training_cost(2e9, 1.8e12, mfu=0.5, peak_flops=1e14, price_per_hour=2.0)
    assert cost.flops == pytest.approx(3.6e21)
    assert cost.gpu_hours == pytest.approx(20_000)  # 3.6e21 / (0.5 x 1e14) / 3600
    assert cost.price == pytest.approx(40_000)
    assert implied_mfu(2e9, 1.8e12, 20_000, 1e14) == pytest.approx(0.5)
    assert H800_PEAK == 989e12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mfu": 0}, "mfu=0 "),
        ({"mfu": 1.2}, r"mfu=1\.2 "),
        ({"mfu": float("nan")}, "mfu=nan"),
        ({"tokens": -1}, "tokens=-1"),
        ({"peak_flops": 0}, "gpu_peak=0"),
        ({"price_per_hour": -2}, "gpu_price=-2"),
    ],
)
def test_mistakes_are_named(more, message):
    with pytest.raises(ConfigError, match=message):
        training_cost(**({"flops_per_token": 1.0, "tokens": 1.0, "mfu": 0.5} | more))
