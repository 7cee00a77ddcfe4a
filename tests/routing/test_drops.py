"""Which pairs dropping takes, counted by hand and for routers of random affinities."""

import numpy as np
import pytest
import torch

import dsv2
from dsv2.routing.drops import drops_by_affinity


def routing() -> dsv2.Routing:
    """Route 4 x 64 tokens of random affinities to 4 of 16 experts."""
    affinities = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
    chosen, gates = dsv2.route(affinities, top_k=4)
    return dsv2.Routing(affinities, chosen, gates)


def test_groups_of_affinity_hold_every_pair_once() -> None:
    experts = torch.tensor([[[0, 1], [0, 1], [0, 1]]])
    affinities = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]])
    gates = affinities.gather(-1, experts)
    drops = torch.tensor([[[False, True], [False, False], [False, True]]])
    table = drops_by_affinity(dsv2.Routing(affinities, experts, gates, drops), bins=3)
    assert table["bin"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table["low"], [0.1, 0.4, 0.7], rtol=1e-6)
    np.testing.assert_allclose(table["high"], [0.3, 0.6, 0.9], rtol=1e-6)
    assert table["pairs"].tolist() == [2, 2, 2]
    assert table["share"].tolist() == [1.0, 0.0, 0.0]


def test_on_one_device_the_lowest_affinities_go() -> None:
    made = routing()
    over = dsv2.drop(made, num_devices=1, capacity_factor=0.7)
    shares = drops_by_affinity(made._replace(dropped=over))["share"].tolist()
    assert shares[:2] == [1.0, 1.0]
    assert 0.9 < shares[2] <= 1.0  # the budget is rounded down, groups by rank
    assert max(shares[4:]) == 0.0
    with pytest.raises(ValueError, match="dropped=None"):
        drops_by_affinity(made)
    with pytest.raises(ValueError, match="bins=0"):
        drops_by_affinity(made._replace(dropped=over), bins=0)
