"""Documents, their content hash and their split into training and validation."""

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

MOST_DOMAINS = 127  # domain numbers are int8


class Document(NamedTuple):
    """One text and where it comes from; the unit of the split."""

    text: str
    domain: str


class Survey(NamedTuple):
    """What one pass over a corpus finds; n documents."""

    content_hash: str  # sha256 over texts and domains, in order
    digests: list[bytes]  # n sha256 of the texts
    domains: list[str]  # n
    num_bytes: int  # UTF-8 bytes of all texts


def take_survey(documents: Iterable[Document]) -> Survey:
    """Hash and count every document."""
    total, digests, domains, num_bytes = hashlib.sha256(), [], [], 0
    for text, domain in documents:
        data = text.encode()
        digests.append(hashlib.sha256(data).digest())
        domains.append(domain)
        num_bytes += len(data)
        total.update(digests[-1] + len(domain.encode()).to_bytes(4) + domain.encode())
    return Survey(total.hexdigest(), digests, domains, num_bytes)


def split(survey: Survey, val_ratio: float) -> set[bytes]:
    """The digests of the validation documents: a share `val_ratio` of the documents, chosen by content alone.

    A document's digest, read as a number in [0, 1), is compared with `val_ratio`, so that it keeps its side in every
    corpus and order, and copies of a text stay together. Only where this leaves a domain of two or more texts without
    one side is the text nearest to that side moved.
    """
    texts: dict[str, set[bytes]] = {}
    for digest, domain in zip(survey.digests, survey.domains, strict=True):
        texts.setdefault(domain, set()).add(digest)
    chosen = {digest for digest in survey.digests if _fraction(digest) < val_ratio}
    for domain in sorted(texts):
        inside = texts[domain]
        if len(inside) < 2:
            continue
        if not inside & chosen:
            chosen.add(min(inside))
        elif inside <= chosen:
            chosen.discard(max(inside))
    return chosen


def one_sided(survey: Survey, chosen: Collection[bytes]) -> bool:
    """Whether training or validation has no document."""
    return not chosen or all(digest in chosen for digest in survey.digests)


def _fraction(digest: bytes) -> float:
    return int.from_bytes(digest[:8]) / 2**64
