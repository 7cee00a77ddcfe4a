"""The all-to-all's devices and bytes against every choice there is, and against the router itself."""

from itertools import combinations

import pytest
import torch

import dsv2
from dsv2.accounting.traffic import all_to_all, expected_devices
from dsv2.config import ConfigError
from dsv2.models.moe.router import route, token_devices


@pytest.mark.parametrize(
    ("num_experts", "top_k", "num_devices"), [(8, 3, 4), (9, 4, 3), (6, 6, 3), (5, 2, 1), (6, 1, 6)]
)
def test_expected_devices_by_trying_every_choice(num_experts, top_k, num_devices):
    group = num_experts // num_devices
    reached = [len({e // group for e in choice}) for choice in combinations(range(num_experts), top_k)]
    assert expected_devices(num_experts, top_k, num_devices) == pytest.approx(sum(reached) / len(reached), rel=1e-12)


def test_the_closed_form():
    """Without a limit each device is missed with probability C(E - E/D, K) / C(E, K); V2's 160, 6, 8."""
    missed = 1.0
    for pair in range(6):
        missed *= (140 - pair) / (160 - pair)
    assert expected_devices(160, 6, 8) == pytest.approx(8 * (1 - missed), rel=1e-12)


@pytest.mark.parametrize("max_devices", [1, 2, 3, 5])
def test_the_limit_against_the_router(max_devices):
    """With a limit a token visits the smaller of M and the devices it would have visited: so does `route`."""
    affinities = torch.rand(4, 4096, 32, generator=torch.Generator().manual_seed(0))
    top_k = min(6, max_devices * 4)
    free = token_devices(route(affinities, top_k=top_k, num_devices=8)[0], 32, 8).sum(-1)
    limited, _ = route(affinities, top_k=top_k, num_devices=8, max_devices=max_devices)
    visited = token_devices(limited, 32, 8).sum(-1)
    assert torch.equal(visited, free.clamp(max=max_devices))
    expected = expected_devices(32, top_k, 8, max_devices)
    assert visited.double().mean() == pytest.approx(expected, rel=0.005)  # 16384 tokens: 3 standard errors are 0.5%


def test_bytes_of_v2():
    traffic = all_to_all(dsv2.load(["model=v2"]).model)
    per_send = 4 * 5120 * 2 * 7 / 8  # there and back, forward and backward, in bfloat16; an eighth stays at home
    assert traffic.bytes_by_pair == pytest.approx(6 * per_send)
    assert traffic.bytes_by_device == pytest.approx(traffic.devices * per_send)
    assert traffic.bytes_by_device_limited == pytest.approx(traffic.devices_limited * per_send)
    assert traffic.most_devices == 3
    assert 2.99 < traffic.devices_limited < 3 < traffic.devices < 6
    free = all_to_all(dsv2.load(["model=v2", "model.ffn.max_devices=null"]).model)
    assert free.bytes_by_pair == traffic.bytes_by_pair  # the limit saves nothing where every pair is sent
    assert free.bytes_by_device_limited == free.bytes_by_device == pytest.approx(traffic.bytes_by_device)


def test_nothing_to_send():
    assert all_to_all(dsv2.load(["model=deepseek_7b"]).model) is None
    assert all_to_all(dsv2.load(["model=v2_lite"]).model).bytes_by_pair == 0  # one device holds all experts


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="element_bytes=0"):
        all_to_all(dsv2.load(["model=v2"]).model, element_bytes=0)
    with pytest.raises(ValueError, match="num_devices=5: must be a divisor"):
        expected_devices(8, 2, 5)
