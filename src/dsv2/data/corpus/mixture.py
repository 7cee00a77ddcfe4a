"""Which documents of each domain a mixture takes, so that domains have given shares of its tokens.

Documents of a domain are taken in the order of a hash of their texts, each once before any is taken twice. Only sums of
tokens per range of hashes are kept, so that memory does not depend on the number of documents.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dsv2.config import ConfigError
from dsv2.data.corpus.settings import Shares

BINS = 1 << 16  # ranges of hashes


class Take(NamedTuple):
    """What is taken of a domain."""

    copies: int  # of every document
    bins: int  # documents whose hash is in the first so many ranges are taken once more

    def times(self, place: int) -> int:
        """Return how often a document whose hash is in range `place` is taken."""
        return self.copies + (place < self.bins)


def place_of(digest: bytes) -> int:
    """Return the range of a document's hash; it does not depend on the side that the document is on."""
    return int.from_bytes(digest[8:10])


def mix(available: Mapping[str, np.ndarray], shares: Shares.Config | None) -> dict[str, Take]:
    """Return what is taken of each domain, given its tokens per range of hashes, (BINS,) each.

    Without `shares`, everything once. Raises `ConfigError` for a share of a domain that has no documents.
    """
    if shares is None:
        return dict.fromkeys(available, Take(1, 0))
    parts, sizes = shares.parts(), {domain: int(tokens.sum()) for domain, tokens in available.items()}
    for domain in parts:
        if not sizes.get(domain):
            valid = f"shares of domains with documents: {', '.join(sorted(sizes)) or 'there is none'}"
            raise ConfigError(f"data.shares.weights.{domain}", shares.weights[domain], valid)
    total = shares.tokens or min(sizes[domain] / part for domain, part in parts.items())
    taken = {domain: _take(available[domain], part * total) for domain, part in parts.items()}
    return dict.fromkeys(available, Take(0, 0)) | taken


def _take(tokens: np.ndarray, wanted: float) -> Take:
    """Take as near as whole ranges come to `wanted` tokens."""
    size = int(tokens.sum())
    copies = int(wanted // size)
    left, ends = wanted - copies * size, np.concatenate([[0], np.cumsum(tokens)])
    bins = int(np.abs(ends - left).argmin())  # the first of equals
    return Take(copies + 1, 0) if ends[bins] == size else Take(copies, bins)
