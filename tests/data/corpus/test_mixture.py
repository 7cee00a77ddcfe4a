"""Mixtures by share of tokens: what is taken, how often, and what is refused."""

import numpy as np
import pytest

from dsv2.config import ConfigError
from dsv2.data.corpus.mixture import BINS, Take, mix, place_of
from dsv2.data.corpus.settings import Shares
from dsv2.data.documents import text_digest


def spread(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Tokens of documents of these sizes, by range of hashes."""
    tokens = np.zeros(BINS, dtype=np.int64)
    np.add.at(tokens, np.random.default_rng(seed).integers(0, BINS, len(sizes)), sizes)
    return tokens


def taken(take: Take, tokens: np.ndarray) -> int:
    return int(sum(take.times(place) * tokens[place] for place in np.flatnonzero(tokens)))


def test_the_papers_mixture_has_12_percent_more_chinese() -> None:
    available = {"english": spread([90] * 4000), "chinese": spread([30] * 9000, 1), "code": spread([500] * 900, 2)}
    takes = mix(available, Shares.Config())
    tokens = {domain: taken(takes[domain], available[domain]) for domain in available}
    assert tokens["chinese"] == 270_000  # the scarcest is taken whole, once
    assert tokens["chinese"] / tokens["english"] == pytest.approx(1.12, abs=0.002)
    assert tokens["code"] / tokens["english"] == pytest.approx(0.5, abs=0.005)
    assert max(take.times(0) for take in takes.values()) == 1


def test_more_tokens_than_there_are_repeat_whole_passes() -> None:
    available = {"english": spread([100] * 40), "chinese": spread([100] * 10, 1)}
    takes = mix(available, Shares.Config(weights={"english": 1, "chinese": 1}, tokens=5000))
    assert taken(takes["english"], available["english"]) == 2500
    assert taken(takes["chinese"], available["chinese"]) == 2500
    assert takes["chinese"].copies == 2
    assert {takes["chinese"].times(place) for place in range(BINS)} == {2, 3}


def test_unequal_weights_of_tiny_sources_stay_within_what_there_is() -> None:
    """Pitfall: weights .999 and .001 on two sources of four documents."""
    available = {"a": spread([10] * 4), "b": spread([10] * 4, 1)}
    takes = mix(available, Shares.Config(weights={"a": 0.999, "b": 0.001}))
    assert (taken(takes["a"], available["a"]), taken(takes["b"], available["b"])) == (40, 0)
    takes = mix(available, Shares.Config(weights={"a": 0.999, "b": 0.001}, tokens=4000))
    assert taken(takes["a"], available["a"]) == pytest.approx(3996, abs=10)
    assert taken(takes["b"], available["b"]) <= 10


def test_without_shares_everything_is_taken_once_and_a_weight_of_0_leaves_out() -> None:
    available = {"a": spread([10] * 4), "b": spread([10] * 4, 1)}
    assert mix(available, None) == {"a": Take(1, 0), "b": Take(1, 0)}
    assert mix(available, Shares.Config(weights={"a": 2, "b": 0})) == {"a": Take(1, 0), "b": Take(0, 0)}


def test_a_share_of_a_domain_without_documents_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.shares\.weights\.code=0\.5 is not valid: .*: chinese, english$"):
        mix({"english": spread([1]), "chinese": spread([1])}, Shares.Config())


def test_a_documents_place_says_nothing_of_its_side() -> None:
    places = np.array([place_of(text_digest(str(number))) for number in range(400)])
    assert places.max() < BINS
    assert abs(places.mean() / BINS - 0.5) < 0.05
