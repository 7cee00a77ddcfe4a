"""The data card of a corpus: what went in and out of every step, and what each dropped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from dsv2.data.corpora import MB
from dsv2.data.corpus.annotate import CLASSIFIER, Plan
from dsv2.data.corpus.contentious import Classifier
from dsv2.data.corpus.select import SIDES, Selected, Tally
from dsv2.data.corpus.stored import DOCUMENTS
from dsv2.data.tokenizer import Tokenizer

TABLE_MB = 50.0  # of training documents that the tokenizers of the table are trained on, and of held-out ones read


def make_card(
    plan: Plan, selected: Selected, tally: Tally, annotations: Path, folder: Path, vocabularies: Sequence[int]
) -> dict[str, Any]:
    """Describe the documents in `folder`. JSON-ready.

    `steps` has, for training and held-out documents, documents and tokens in and out of every step, in all and by
    domain; `samples` texts that each step dropped; `mixture` what the shares came to; `duplicates` how many clusters of
    each size were found; `bytes_per_token` a row per size of `vocabularies`, measured on held-out documents.
    """
    selection = selected.selection
    steps = {side: tally.steps(side) for side in SIDES}
    return {
        "sources": {name: size._asdict() for name, size in plan.sources.items()},
        "filters": list(selection.filters),
        "held_out_filters": list(selection.held_out_filters),
        "steps": steps,
        "quality_rules": dict(tally.reasons.most_common()),
        "mixture": _mixture(steps["training"][-1], tally),
        "duplicates": {side: found.clusters for side, found in selected.found.items()},
        "classifier": {"passages": Classifier.load(annotations / CLASSIFIER).examples},
        "samples": {step: [item for _, _, item in sorted(tally.samples[step], reverse=True)] for step in tally.samples},
        "bytes_per_token": _bytes_per_token(folder, vocabularies),
    }


def _mixture(step: dict[str, Any], tally: Tally) -> dict[str, dict[str, float]]:
    """Return tokens, share and repetition of each domain in training."""
    once = {domain: part["tokens"] for domain, part in step["out"].items() if domain != "total"}
    tokens = {domain: count + tally.repeated[domain] for domain, count in once.items()}
    total = max(sum(tokens.values()), 1)
    return {
        domain: {
            "available": step["in"][domain]["tokens"],
            "tokens": count,
            "share": count / total,
            "epochs": count / max(once[domain], 1),
        }
        for domain, count in tokens.items()
    }


def _bytes_per_token(folder: Path, vocabularies: Sequence[int]) -> dict[str, dict[str, float]]:
    """Train a tokenizer of each size on training documents; return bytes per token of held-out ones, by domain."""
    if not vocabularies:
        return {}
    sides: dict[bool, dict[str, list[str]]] = {False: {}, True: {}}
    sizes = dict.fromkeys(sides, 0)
    for path in sorted((folder / DOCUMENTS).glob("*.parquet")):
        for row in parquet.read_table(path, columns=["text", "domain", "held_out"]).to_pylist():
            side = row["held_out"]
            if sizes[side] < TABLE_MB * MB:
                sides[side].setdefault(row["domain"], []).append(row["text"])
                sizes[side] += len(row["text"].encode())
    table = {}
    for size in vocabularies:
        tokenizer = Tokenizer.train((text for texts in sides[False].values() for text in texts), size)
        table[str(size)] = {
            domain: sum(len(text.encode()) for text in texts) / max(sum(map(len, tokenizer.encode_batch(texts))), 1)
            for domain, texts in sorted(sides[True].items())
        }
    return table
