"""A data card as a page: the tables of `make_card`'s values, and samples of what each step dropped."""

from collections.abc import Sequence
from typing import Any

STEP_HEADER = ("step", "documents in", "documents out", "tokens in", "tokens out")
SHARE_HEADER = ("domain", "tokens available", "tokens taken", "share", "times each")


def markdown(card: dict[str, Any]) -> str:
    """Return the card as a page."""
    parts = ["# Data card", _sources(card)]
    parts += [f"## {side.replace('_', '-').capitalize()} documents\n\n{_steps(card, side)}" for side in card["steps"]]
    parts += [f"## Mixture\n\n{table(SHARE_HEADER, share_rows(card))}", f"## Duplicates\n\n{_clusters(card)}"]
    if card["bytes_per_token"]:
        parts.append(f"## Bytes per token\n\n{tokens_table(card)}")
    parts.append(f"## What was dropped\n\n{_samples(card)}")
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def step_rows(card: dict[str, Any], side: str) -> list[list[str]]:
    """Return the rows of the table of steps, under STEP_HEADER; the name of one that was not applied is in brackets."""
    return [
        [
            entry["step"] if entry["step"] in (*card["filters"], "held-out", "mixture") else f"({entry['step']})",
            *(f"{entry[way]['total']['documents']:,}" for way in ("in", "out")),
            *(f"{entry[way]['total']['tokens']:,}" for way in ("in", "out")),
        ]
        for entry in card["steps"][side]
    ]


def _sources(card: dict[str, Any]) -> str:
    rows = [
        [name, f"{s['documents']:,}", f"{s['num_bytes']:,}", s["content"][:16]] for name, s in card["sources"].items()
    ]
    return table(("source", "documents", "bytes", "SHA-256"), rows)


def _steps(card: dict[str, Any], side: str) -> str:
    domains = [domain for domain in card["steps"][side][0]["in"] if domain != "total"]
    parts = [table(STEP_HEADER, step_rows(card, side))]
    for what in ("documents", "tokens"):
        rows = [
            [entry["step"], *(f"{entry['in'][d][what]:,} to {entry['out'][d][what]:,}" for d in domains)]
            for entry in card["steps"][side]
        ]
        parts.append(table((f"{what}, in to out", *domains), rows))
    return "\n\n".join(parts)


def share_rows(card: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table of the mixture, under SHARE_HEADER."""
    return [
        [domain, f"{part['available']:,}", f"{part['tokens']:,}", f"{part['share']:.1%}", f"{part['epochs']:.2f}"]
        for domain, part in card["mixture"].items()
    ]


def _clusters(card: dict[str, Any]) -> str:
    rows = [
        [side.replace("_", "-"), str(size), f"{count:,}"]
        for side, sizes in card["duplicates"].items()
        for size, count in sizes.items()
    ]
    return table(("documents", "near-duplicates in a cluster", "clusters"), rows)


def tokens_table(card: dict[str, Any]) -> str:
    """Return the table of bytes per token of held-out documents, by size of the vocabulary and domain."""
    domains = list(next(iter(card["bytes_per_token"].values())))
    rows = [[size, *(f"{row[d]:.2f}" for d in domains)] for size, row in card["bytes_per_token"].items()]
    return table(("vocabulary", *domains), rows)


def _samples(card: dict[str, Any]) -> str:
    parts = []
    for step, samples in card["samples"].items():
        if samples:
            rows = [[s["domain"], _why(step, s), " ".join(s["text"].split())] for s in samples]
            parts.append(f"### {step}\n\n{table(('domain', 'why', 'beginning'), rows)}")
    return "\n\n".join(parts) or "Nothing."


def _why(step: str, sample: dict[str, Any]) -> str:
    return {
        "language": f"{sample['language']}, {sample['probability']:.2f}",
        "quality": sample["quality"],
        "contentious": f"score {sample['score']:.2f}, {sample['words']:.1f} words per 1,000",
    }.get(step, "")
