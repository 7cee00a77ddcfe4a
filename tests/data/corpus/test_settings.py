"""Settings of a corpus that cannot be used."""

from typing import Any

import pytest

from dsv2.config import ConfigError
from dsv2.data.corpus.settings import Contentious, Duplicates, Rules, Shares


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (Rules.Config, {"words": (5, 2)}, r"words=\(5, 2\) is not valid: the least and the most"),
        (Rules.Config, {"alphabetic": 1.5}, "alphabetic=1.5"),
        (Contentious.Config, {"threshold": -0.1}, "threshold=-0.1"),
        (Contentious.Config, {"most_words": -1.0}, "most_words"),
        (Duplicates.Config, {"buckets": 0}, "buckets=0 is not valid: 1 or more"),
        (Shares.Config, {"weights": {"english": 0.0}}, "weights=.*not all of them 0"),
        (Shares.Config, {"weights": {"english": -1.0}}, "weights"),
        (Shares.Config, {"tokens": 0}, "tokens=0"),
    ],
)
def test_they_are_refused(config: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**change)


def test_shares_are_relative() -> None:
    assert Shares.Config(weights={"a": 3, "b": 1, "c": 0}).parts() == {"a": 0.75, "b": 0.25}
    assert hash(Shares.Config()) == hash(Shares.Config())
