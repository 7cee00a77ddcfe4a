"""Co-activation, certainty and saturation, where the routing is planted."""

import numpy as np
import pandas as pd
import pytest

from dsv2.routing import coactivation
from tests.references.routing import S, T, draw, observed


def test_pairs_that_are_always_together_are_three_times_as_often_as_independent() -> None:
    even = 2 * draw(S, T, below=2)
    experts = np.stack([even, even + 1], -1)  # 0 with 1, or 2 with 3
    pairs = coactivation.coactivation(observed(experts, num_experts=4)).set_index(["expert", "other"])
    first = (experts[..., 0] == 0).mean()
    assert pairs["tokens"].sum() == S * T
    assert pairs.loc[(0, 1), "tokens"] == round(first * S * T)
    weight = 1 / (first**2 + (1 - first) ** 2 + 4 * first * (1 - first))  # of the six products of loads
    assert pairs.loc[(0, 1), "ratio"] == pytest.approx(1 / (first * weight))
    assert pairs.loc[(0, 1), "ratio"] == pytest.approx(3, rel=0.1)
    assert (pairs.drop([(0, 1), (2, 3)])["ratio"] == 0).all()
    far = coactivation.far_from_independent(pairs.reset_index())
    assert far["far"].tolist() == [1.0]


def test_independent_pairs_have_ratio_one() -> None:
    both = np.array([(i, j) for i in range(4) for j in range(4) if i != j])
    pairs = coactivation.coactivation(observed(np.tile(both, (5, 2, 1, 1)).reshape(10, 12, 2), num_experts=4))
    np.testing.assert_allclose(pairs["ratio"], 1)
    assert coactivation.far_from_independent(pairs)["far"].tolist() == [0.0]
    with pytest.raises(ValueError, match="top_k=1"):
        coactivation.coactivation(observed(draw(S, T, 1, below=4), num_experts=4))


def test_certainty() -> None:
    gates = np.broadcast_to([0.3, 0.1], (S, T, 2))
    (row,) = coactivation.router_certainty(observed(draw(S, T, 2, below=4), num_experts=4, gates=gates)).to_dict(
        "records"
    )
    expected = {"layer": 3, "entropy_token": 0.25, "entropy_mean": 1, "chosen_mass": 0.4, "top_gate": 0.75}
    assert row == pytest.approx(expected, rel=1e-6)


def test_saturation_is_the_overlap_with_the_last_step() -> None:
    experts = {  # step -> (tokens, slots)
        0: [(0, 1), (0, 1), (2, 3), (2, 3)],
        8: [(1, 2), (1, 0), (3, 0), (3, 2)],
        12: [(1, 0), (0, 1), (3, 2), (3, 2)],
    }
    rows = [
        (step, 1, token, slot, expert)
        for step, table in experts.items()
        for token, chosen in enumerate(table)
        for slot, expert in enumerate(chosen)
    ]
    overlaps = coactivation.saturation(pd.DataFrame(rows, columns=["step", "layer", "token", "slot", "expert"]), 4)
    assert overlaps["overlap"].tolist() == [1, 0.75, 1]  # the order of the slots does not matter
    assert overlaps["chance"].tolist() == [0.5, 0.5, 0.5]  # all four experts are used alike
    assert overlaps["step"].tolist() == [0, 8, 12]
