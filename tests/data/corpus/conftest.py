"""Sources of made-up text, and a corpus of them with small settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv2.data.corpus.source import FilteredCorpus
from tests.references.raw_texts import write_sources

pytest.importorskip("datatrove")

Make = Callable[..., FilteredCorpus.Config]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make the config of a corpus of 132 documents; keywords are its settings."""
    sources = write_sources(tmp_path / "raw")

    def config(**settings: Any) -> FilteredCorpus.Config:
        return FilteredCorpus.Config(**({"sources": tuple(sources), "vocab_size": 300, "shares": None} | settings))

    return config
