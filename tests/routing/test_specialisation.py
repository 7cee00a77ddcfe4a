"""What experts specialise in, where the routing is planted."""

import math

import numpy as np
import pytest

from dsv2.routing import specialisation
from tests.references.routing import S, T, draw, observed


def halves() -> np.ndarray:
    """Two domains: the first half of the sequences, and the second."""
    return np.repeat(np.arange(2), S // 2)[:, None].repeat(T, 1)


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
