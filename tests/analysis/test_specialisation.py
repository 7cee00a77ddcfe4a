"""Specialisation, co-activation, certainty and saturation where the routing is planted."""

import math

import numpy as np
import pandas as pd
import pytest

from dsv2.routing import coactivation, specialisation
from dsv2.routing.observed import SequenceLosses, Observed

S, T = 40, 24


def observed(experts: np.ndarray, *, num_experts: int, tokens=None, domains=None, gates=None) -> Observed:
    """One MoE layer, number 3, with the given experts (S, T, K)."""
    ones = np.ones(len(experts))
    gates = np.ones(experts.shape) if gates is None else gates
    return Observed(
        losses=SequenceLosses(ones, ones),
        tokens=np.zeros(experts.shape[:2], dtype=np.int64) if tokens is None else tokens,
        domains=domains,
        num_experts=num_experts,
        layers=(3,),
        experts=experts[None].astype(np.int16),
        gates=gates[None].astype(np.float32),
        entropy=np.full((1, *experts.shape[:2]), 0.25, dtype=np.float32),
        mean_affinity=np.full((1, num_experts), 1 / num_experts),
    )


def halves() -> np.ndarray:
    """Two domains: the first half of the sequences, and the second."""
    return np.repeat(np.arange(2), S // 2)[:, None].repeat(T, 1)


def draw(*shape: int, below: int) -> np.ndarray:
    return np.random.default_rng(0).integers(below, size=shape)


def test_experts_of_one_domain_each_have_log_2() -> None:
    domains = halves()
    experts = (2 * domains + draw(S, T, below=2))[..., None]  # experts 0, 1 for domain 0 and 2, 3 for domain 1
    seen = observed(experts, num_experts=4, domains=domains)
    (row,) = specialisation.domain_information(seen).to_dict("records")
    assert row["layer"] == 3
    assert row["information"] == pytest.approx(math.log(2)) == row["most"]
    assert row["chance"] < 0.1
    assert row["p"] == pytest.approx(1 / 201)
    shares = specialisation.domain_shares(seen, ("code", "english"))
    assert shares.groupby("domain")["share"].sum().tolist() == pytest.approx([1, 1])
    table = shares.pivot(index="domain", columns="expert", values="lift")
    np.testing.assert_allclose(table.loc["code"], [2, 2, 0, 0])
    np.testing.assert_allclose(table.loc["english"], [0, 0, 2, 2])


def test_experts_drawn_at_random_are_not_specialised() -> None:
    experts = draw(S, T, 2, below=8)
    seen = observed(experts, num_experts=8, domains=halves())
    (row,) = specialisation.domain_information(seen).to_dict("records")
    assert 0 < row["chance"] < 0.01
    assert row["information"] == pytest.approx(row["chance"], abs=0.005)
    assert row["p"] > 0.05


def test_chance_knows_that_tokens_of_one_sequence_are_alike() -> None:
    """Every sequence has an expert of its own: any two domains look specialised, and so do shuffled ones."""
    experts = np.arange(S)[:, None, None].repeat(T, 1)
    (row,) = specialisation.domain_information(observed(experts, num_experts=S, domains=halves())).to_dict("records")
    assert row["information"] == pytest.approx(math.log(2))
    assert row["chance"] == pytest.approx(math.log(2))
    assert row["p"] == 1


def test_one_domain_is_refused() -> None:
    for domains in (None, np.zeros((S, T), dtype=int)):
        with pytest.raises(ValueError, match="fewer than two domains"):
            specialisation.domain_information(observed(draw(S, T, 1, below=2), num_experts=2, domains=domains))


def test_a_router_that_goes_by_the_token_is_found_out() -> None:
    tokens = draw(S, T, below=16)
    experts = np.stack([tokens % 4, 4 + tokens % 4], -1)  # each of 4 pairs of experts has 4 tokens of its own
    seen = observed(experts, num_experts=8, tokens=tokens)
    (row,) = specialisation.token_information(seen).to_dict("records")
    assert row["information"] == pytest.approx(row["most"])
    assert row["share_of_most"] == pytest.approx(1)
    assert row["chance"] < 0.1
    table = specialisation.expert_tokens(seen, lambda token: f"<{token}>", top=4)
    assert (table["concentration"] == 1).all()
    assert table["chance"].between(0.25, 0.5).all()  # 4 of 16 tokens, the commonest by luck
    assert set(table["tokens_in_text"][1].split()) == {"'<1>'", "'<5>'", "'<9>'", "'<13>'"}
    assert table["load"].sum() == pytest.approx(8)


def test_a_router_that_ignores_the_token_is_at_chance() -> None:
    seen = observed(draw(S, T, 2, below=8), num_experts=8, tokens=np.random.default_rng(1).integers(16, size=(S, T)))
    (row,) = specialisation.token_information(seen).to_dict("records")
    assert abs(row["share_of_most"]) < 0.01
    assert row["p"] > 0.04


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
    found = coactivation.saturation(pd.DataFrame(rows, columns=["step", "layer", "token", "slot", "expert"]), 4)
    assert found["overlap"].tolist() == [1, 0.75, 1]  # the order of the slots does not matter
    assert found["chance"].tolist() == [0.5, 0.5, 0.5]  # all four experts are used alike
    assert found["step"].tolist() == [0, 8, 12]
