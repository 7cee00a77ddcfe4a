"""Documents, their content hash and their split into training and validation."""

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

MOST_DOMAINS = 127  # domain numbers are int8


class Document(NamedTuple):
    """One text and its domain; the unit of the split."""

    text: str
    domain: str
    held_out: bool | None = None  # the side it must be on; None: its text decides
    place: str | None = None  # where it was read, for messages


class Survey(NamedTuple):
    """Hashes and sizes from one pass over a corpus of n documents."""

    content_hash: str  # SHA-256 of texts and domains, in order
    digests: list[bytes]  # n, SHA-256 of each text
    domains: list[str]  # n
    num_bytes: int  # UTF-8 bytes of all texts
    held_out: dict[bytes, bool]  # sides of the texts that must be on one


def take_survey(documents: Iterable[Document]) -> Survey:
    """Hash and count every document."""
    total, digests, domains, num_bytes, sides = hashlib.sha256(), [], [], 0, {}
    for text, domain, held_out, _ in documents:
        digests.append(text_digest(text))
        domains.append(domain)
        num_bytes += len(text.encode())
        total.update(entry(digests[-1], domain))
        if held_out is not None:
            sides[digests[-1]] = held_out
    return Survey(total.hexdigest(), digests, domains, num_bytes, sides)


def split(survey: Survey, val_ratio: float) -> set[bytes]:
    """Return the digests of the validation documents, a share `val_ratio` chosen by content alone.

    A document's digest, read as a number in [0, 1), is compared with `val_ratio`, so that it is on the same side in
    every corpus and order, and copies of a text stay together. If this leaves one side of a domain with two or more
    texts empty, the text nearest to the threshold is moved. Documents that name their side are on it.
    """
    texts: dict[str, set[bytes]] = {}
    for digest, domain in zip(survey.digests, survey.domains, strict=True):
        if digest not in survey.held_out:
            texts.setdefault(domain, set()).add(digest)
    chosen = {digest for digest in survey.digests if survey.held_out.get(digest, fraction(digest) < val_ratio)}
    for domain in sorted(texts):
        of_domain = texts[domain]
        if len(of_domain) < 2:
            continue
        if not of_domain & chosen:
            chosen.add(min(of_domain))
        elif of_domain <= chosen:
            chosen.discard(max(of_domain))
    return chosen


def one_sided(survey: Survey, chosen: Collection[bytes]) -> bool:
    """Whether the training or the validation split is empty."""
    return not chosen or all(digest in chosen for digest in survey.digests)


def entry(digest: bytes, domain: str) -> bytes:
    """Return what a document adds to the hash of its corpus, given the digest of its text."""
    return digest + len(domain.encode()).to_bytes(4) + domain.encode()


def text_digest(text: str) -> bytes:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def fraction(digest: bytes) -> float:
    """Read a digest as a number in [0, 1)."""
    return int.from_bytes(digest[:8]) / 2**64
