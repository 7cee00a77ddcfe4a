"""Bytes, times and drops against closed forms, a loop over tokens, and examples by hand."""

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from dsv2.accounting.traffic import bytes_per_send, expected_devices
from dsv2.config import ConfigError
from dsv2.distributed.hardware import GPU
from dsv2.distributed.traffic import (
    Choices,
    Experts,
    Placed,
    all_to_all_seconds,
    balanced,
    layer_costs,
    place,
    random_choices,
    useful_throughput,
)

GPU_ = GPU(name="toy", peak_flops=1e6, memory=1e9, nvlink=100.0, network=10.0, latency=0.0, source="made up")


def test_uniform_routing_reaches_as_many_devices_as_the_closed_form():
    """D(1 - C(140, 6) / C(160, 6)) = 4.46 devices at D = 8, E = 160, K = 6; 65,536 tokens are within 0.5%."""
    expected = 8 * (1 - comb(140, 6) / comb(160, 6))
    assert expected == pytest.approx(4.4586, abs=1e-4)
    placed = place(random_choices(65_536, 160, 6, num_devices=8), 160, 8)
    assert placed.devices_per_token == pytest.approx(expected, rel=0.005)
    assert placed.pairs.sum() == 6 * 65_536
    limited = place(random_choices(65_536, 160, 6, num_devices=8, max_devices=3), 160, 8)
    assert limited.devices_per_token == pytest.approx(expected_devices(160, 6, 8, 3), rel=0.005)


def test_every_choice_once_is_the_closed_form_exactly():
    """All C(8, 3) choices from every device: bytes are those of `accounting.traffic` to the last."""
    experts = torch.tensor(list(combinations(range(8), 3)) * 4)
    placed = place(Choices(experts, torch.ones(len(experts), 3)), 8, 4)
    assert placed.devices_per_token == pytest.approx(expected_devices(8, 3, 4), rel=1e-12)
    for once, sends in ((True, expected_devices(8, 3, 4)), (False, 3)):
        costs = layer_costs(placed, Experts(16, 8, 1), GPU_, once_per_device=once)
        assert costs.bytes_per_token == pytest.approx(sends * bytes_per_send(16, 4), rel=1e-12)
        assert costs.straggler == 0


@pytest.mark.parametrize("capacity_factor", [None, 1.0, 0.5])
def test_counts_by_a_loop_over_tokens(capacity_factor):
    choices = random_choices(24, 12, 3, skew=1.5, seed=3)
    placed = place(choices, 12, 4, capacity_factor=capacity_factor)
    pairs, tokens = np.zeros((2, 4, 4), dtype=int)
    chosen = [
        (float(choices.scores[token, slot]), token, int(choices.experts[token, slot]) // 3)
        for token in range(24)
        for slot in range(3)
    ]
    room = {device: 72 if capacity_factor is None else int(capacity_factor * 72 / 4) for device in range(4)}
    kept = set()
    for _, token, device in sorted(chosen, key=lambda pair: -pair[0]):
        if room[device]:
            room[device] -= 1
            pairs[token // 6, device] += 1
            kept.add((token, device))
    for token, device in kept:
        tokens[token // 6, device] += 1
    assert np.array_equal(placed.pairs, pairs)
    assert np.array_equal(placed.tokens, tokens)
    assert placed.dropped == 72 - pairs.sum()
    assert placed.kept == pairs.sum() / 72
    assert (placed.dropped > 0) is (capacity_factor is not None)


def test_an_all_to_all_by_hand():
    """Device 0 sends 50 and 100 bytes at 100 per second, 1 receives 50 + 30; what stays at home is free."""
    sent = np.array([[999, 50, 100], [0, 999, 0], [0, 30, 999]])
    assert all_to_all_seconds(sent, GPU_) == 1.5
    assert all_to_all_seconds(sent, replace(GPU_, latency=0.25)) == 1.75
    # Two nodes, {0, 1} and {2}: 100 from 0 to 2 cross the network at 10 per second.
    assert all_to_all_seconds(sent, replace(GPU_, gpus_per_node=2)) == 10
    assert all_to_all_seconds(np.diag([5, 5]), replace(GPU_, latency=1.0)) == 0


def test_the_costs_of_a_layer_by_hand():
    """Two devices, 4 tokens, d = 10, width 5, one shared expert: 300 FLOPs per token and expert, 500,000 per second.

    All 4 tokens choose an expert of device 1, so that 2 tokens cross: 2 x 10 x 2 bytes at 100 per second are 0.4 s in
    each of four transfers.
    """
    placed = place(Choices(torch.tensor([[2], [3], [2], [3]]), torch.ones(4, 1)), 4, 2)
    costs = layer_costs(placed, Experts(10, 5, 1), GPU_, once_per_device=True)
    pair = 300 / 500_000
    assert costs.bytes_per_token == 4 * 40 / 4
    assert costs.all_to_all == pytest.approx(1.6)
    assert costs.shared == pytest.approx(3 * 2 * pair)
    assert costs.hidden == pytest.approx(2 * pair + 4 * pair)  # all of the shared experts, in forward and backward
    assert costs.experts == pytest.approx(3 * 2 * pair)
    assert costs.straggler == pytest.approx(3 * 2 * pair)  # 4 pairs on one device, 2 in the mean
    assert costs.total == pytest.approx(1.6 + 12 * pair)
    slow = layer_costs(placed, Experts(10, 5, 1), replace(GPU_, peak_flops=1e3), once_per_device=True)
    assert slow.hidden == slow.all_to_all == pytest.approx(1.6)  # shared experts take longer than the transfers
    assert slow.exposed == 0


def test_dropping_trades_pairs_for_the_straggler():
    choices = random_choices(512, 32, 4, skew=1.0)
    experts = Experts(64, 32, 1)
    free, tight = (place(choices, 32, 8, capacity_factor=factor) for factor in (None, 1.0))
    even = layer_costs(balanced(free), experts, GPU_, once_per_device=False)
    costs, dropped = (layer_costs(placed, experts, GPU_, once_per_device=False) for placed in (free, tight))
    assert even.straggler == 0
    assert costs.straggler > dropped.straggler
    assert tight.pairs.sum(0).max() == 512 * 4 // 8
    assert (costs.kept, dropped.kept) == (1, 1 - tight.dropped / 2048)
    assert useful_throughput(even, even) == 1
    assert useful_throughput(dropped, even) == pytest.approx(dropped.kept * even.total / dropped.total)
    assert useful_throughput(costs, even) < useful_throughput(dropped, even) < 1


def test_balanced_counts_add_up():
    placed = Placed(8, np.array([[5, 1], [2, 0]]), np.array([[3, 1], [2, 0]]), 4)
    even = balanced(placed)
    assert even.pairs.tolist() == [[3, 3], [3, 3]]
    assert even.tokens.tolist() == [[2, 2], [2, 2]]
    assert even.dropped == 0


def test_skew_makes_experts_uneven():
    loads = [torch.bincount(random_choices(4096, 16, 2, skew=skew).experts.flatten(), minlength=16) for skew in (0, 1)]
    assert loads[0].max() < 1.2 * loads[0].float().mean()
    assert loads[1].max() > 2 * loads[1].float().mean()
    again = random_choices(4096, 16, 2, skew=1).experts
    assert torch.equal(torch.bincount(again.flatten(), minlength=16), loads[1])


def test_what_cannot_be_drawn():
    with pytest.raises(ConfigError, match="skew=-1"):
        random_choices(8, 8, 2, skew=-1)
    with pytest.raises(ConfigError, match="affinities"):
        random_choices(2**22, 64, 2)
    with pytest.raises(ValueError, match="num_devices=3"):
        random_choices(8, 8, 2, num_devices=3)
