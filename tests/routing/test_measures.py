"""Counts and measures of a routing, by hand.

6 experts on 3 devices (0 1 | 2 3 | 4 5), K = 2.
"""

import math

import pytest
import torch

from dsv2 import Routing
from dsv2.routing.measures import Measures, count, mean_measures, measure
from tests.references.tolerances import FLOAT32

FIRST = [[[0, 1], [0, 2]], [[0, 1], [1, 0]]]  # 4 tokens
SECOND = [[[2, 3], [0, 4], [1, 3]]]  # 3 tokens


def routing(experts: list, dropped: list | None = None) -> Routing:
    chosen = torch.tensor(experts)
    s = torch.full((*chosen.shape[:2], 6), 1 / 6)
    mask = None if dropped is None else torch.tensor(dropped)
    return Routing(affinities=s, experts=chosen, gates=s.gather(-1, chosen), dropped=mask)


def agree(actual: Measures, expected: Measures) -> None:
    """In every field; the tolerance is for log E, which is a float32."""
    for name in Measures._fields:
        assert getattr(actual, name) == pytest.approx(getattr(expected, name), rel=FLOAT32, abs=FLOAT32), name


def test_counts() -> None:
    dropped = [[[False, True], [False, False]], [[False, False], [True, True]]]
    counts = count(routing(FIRST, dropped), num_devices=3)
    assert counts.load.tolist() == [4, 3, 1, 0, 0, 0]
    assert counts.dropped.tolist() == [1, 2, 0, 0, 0, 0]
    assert counts.received.tolist() == [4, 1, 0]  # a token with both experts on a device is sent there once
    assert int(counts.overflow) == 7 - 2  # 7 pairs on device 0, room for floor(8 / 3) = 2 on each; 1 on device 1
    assert int(counts.tokens) == 4
    assert not count(routing(FIRST), num_devices=3).dropped.any()


def test_counts_of_batches_add_up() -> None:
    """Everything but the overflow is what one batch of all tokens would count."""
    total = count(routing(FIRST), num_devices=3) + count(routing(SECOND), num_devices=3)
    assert total.load.tolist() == [5, 4, 2, 2, 1, 0]
    assert total.received.tolist() == [4 + 2, 1 + 2, 0 + 1]
    assert int(total.tokens) == 7
    assert int(total.overflow) == 5 + 1  # the second batch: 2, 3 and 1 pairs, room for 2


def test_measures() -> None:
    dropped = [[[False, True], [False, False]], [[False, False], [True, True]]]
    actual = measure(count(routing(FIRST, dropped), num_devices=3) + count(routing(SECOND), num_devices=3))
    shares = [5 / 14, 4 / 14, 2 / 14, 2 / 14, 1 / 14]
    agree(
        actual,
        Measures(
            max_violation=5 / (14 / 6) - 1,
            entropy=-sum(share * math.log(share) for share in shares) / math.log(6),
            dead_experts=1 / 6,
            device_max_violation=9 / (14 / 3) - 1,
            received_max_violation=6 / (10 / 3) - 1,
            drop_rate=3 / 14,
            overflow=6 / 14,
            devices_per_token=10 / 7,
        ),
    )


def test_perfect_balance() -> None:
    """Each expert once, each token on two devices: nothing is violated, the entropy is 1."""
    actual = measure(count(routing([[[0, 2], [4, 1], [3, 5]]]), num_devices=3))
    agree(actual, Measures(0, 1, 0, 0, 0, 0, 0, 2))


def test_collapse() -> None:
    """All tokens on experts 0 and 1: E / K and D times the mean, the entropy of two of six, 4 of 6 dead."""
    actual = measure(count(routing([[[0, 1]] * 6]), num_devices=3))
    entropy = math.log(2) / math.log(6)
    overflow = (12 - 4) / 12  # 12 pairs on a device with room for 4
    agree(actual, Measures(3 - 1, entropy, 4 / 6, 3 - 1, 3 - 1, 0, overflow, 1))


def test_layers_are_averaged_and_a_dense_model_has_none() -> None:
    layers = [Measures(*(float(i) for i in range(8))), Measures(*(float(3 * i) for i in range(8)))]
    assert mean_measures(layers) == {f"routing/{name}": 2.0 * i for i, name in enumerate(Measures._fields)}
    assert mean_measures([]) == {}


def test_the_budget_is_a_devices_not_an_experts():
    experts = torch.tensor([[[0], [0], [0], [0], [2], [2], [3], [3]]])  # 4 + 0 pairs on device 0, 2 + 2 on device 1
    affinities = torch.full((1, 8, 4), 0.25)
    counts = count(Routing(affinities, experts, affinities.gather(-1, experts)), num_devices=2)
    assert int(counts.overflow) == 0
