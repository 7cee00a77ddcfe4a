"""The floor of a random router against theory, and where it is exact."""

import math

import pytest

from dsv2.routing.floor import random_floor


def test_random_floor_agrees_with_theory_and_with_the_device_limit() -> None:
    floor = random_floor(32, 6, 8, 2560)
    reached = 8 * (1 - math.comb(28, 6) / math.comb(32, 6))  # devices that hold one of 6 of 32 experts
    assert floor["routing/devices_per_token"] == pytest.approx(reached, rel=0.01)
    assert 0.02 < floor["routing/max_violation"] < 0.15
    assert floor["routing/dead_experts"] == 0
    limited = random_floor(32, 6, 8, 2560, max_devices=3)
    assert 2.9 < limited["routing/devices_per_token"] <= 3
    assert limited["routing/device_max_violation"] > floor["routing/device_max_violation"]
    assert random_floor(32, 6, 8, 100_000)["routing/max_violation"] < floor["routing/max_violation"] / 3
    small = random_floor(32, 6, 8, 2560, batch_tokens=256)  # smaller batches overflow more
    assert small["routing/overflow"] > 2 * floor["routing/overflow"]
    assert random_floor(8, 1, 4, 2)["routing/dead_experts"] >= 0.75
    with pytest.raises(ValueError, match="top_k=9"):
        random_floor(32, 9, 8, 100, max_devices=2)


def test_random_floor_of_one_token_is_exact() -> None:
    """One token takes 2 of 4 experts, kept to 1 of 2 devices: whatever is drawn, the measures are these."""
    floor = random_floor(4, 2, 2, 1, max_devices=1)
    assert floor == pytest.approx(
        {
            "routing/max_violation": 1 / (2 / 4) - 1,
            "routing/entropy": math.log(2) / math.log(4),
            "routing/dead_experts": 2 / 4,
            "routing/device_max_violation": 2 / 1 - 1,
            "routing/received_max_violation": 1 / (1 / 2) - 1,
            "routing/overflow": (2 - 1) / 2,  # 2 pairs on a device with room for 1
            "routing/devices_per_token": 1,
        }
    )


def test_random_floor_is_perfect_where_every_expert_is_chosen() -> None:
    """K = E: each device gets every token once and an equal share of the pairs."""
    floor = random_floor(6, 6, 3, 10)
    perfect = dict.fromkeys(floor, 0.0) | {"routing/entropy": 1.0, "routing/devices_per_token": 3.0}
    assert floor == pytest.approx(perfect)
