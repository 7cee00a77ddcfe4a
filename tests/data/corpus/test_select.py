"""Which documents are in a corpus, and what is counted of those that are not."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dsv2.data.corpus.annotate import annotate
from dsv2.data.corpus.select import FUNNEL, KEPT, MIXTURE, SAMPLES, Kept, Tally, contested, select
from dsv2.data.corpus.settings import STEPS, Selection


@pytest.fixture
def chosen(make, tmp_path: Path):
    """Return a function that selects with some filters; each call has a folder of its own."""
    order = make().order()
    shards = annotate(order.plan, tmp_path / "annotated")

    def run(filters=STEPS, held_out_filters=("language", "quality", "duplicates"), **settings):
        selection = order.selection._replace(filters=filters, held_out_filters=held_out_filters, **settings)
        scratch = tmp_path / f"selected-{len(list(tmp_path.iterdir()))}"
        selected, tally = select(tmp_path / "annotated", shards, selection, scratch), Tally()
        return list(selected.documents(tally)), tally

    return run


def training(documents: list[Kept]) -> list[Kept]:
    return [document for document in documents if not document.row["held_out"]]


def test_no_filter_keeps_all_but_duplicates_of_held_out_documents(chosen) -> None:
    documents, tally = chosen(filters=())
    assert {kept.domain for kept in training(documents)} == {"english", "chinese", "code", "hu"}
    steps = {entry["step"]: entry for entry in tally.steps("training")}
    for step in ("language", "quality", "contentious", "duplicates", MIXTURE):
        assert steps[step]["in"] == steps[step]["out"]
    assert steps["held-out"]["out"]["total"]["documents"] == len(training(documents))


def test_each_filter_drops_what_it_is_there_for(chosen) -> None:
    raw = {kept.text for kept in training(chosen(filters=())[0])}
    dropped = {step: raw - {kept.text for kept in training(chosen(filters=(step,))[0])} for step in STEPS}
    assert len(dropped["language"]) >= 5
    assert all("halász" in text for text in dropped["language"] if "的" not in text and len(text) > 30)
    assert any(text.startswith("！！！") for text in dropped["quality"])
    assert all("propaganda" in text for text in dropped["contentious"])
    assert dropped["contentious"]
    assert {text[:20] for text in dropped["duplicates"]} & {text[:20] for text in raw - dropped["duplicates"]}


def test_the_held_out_documents_do_not_depend_on_the_filters_of_training(chosen) -> None:
    judged = [
        [(kept.text, kept.domain) for kept in chosen(filters=filters)[0] if kept.row["held_out"]]
        for filters in ((), ("quality",), STEPS)
    ]
    assert judged[0] == judged[1] == judged[2]
    assert not any("halász" in text for text, _ in judged[0])


def test_steps_add_up(chosen) -> None:
    documents, tally = chosen()
    for side, held_out in (("training", False), ("held_out", True)):
        steps = tally.steps(side)
        for before, after in itertools.pairwise(steps):
            assert {k: v["documents"] for k, v in before["out"].items()} == {
                k: v["documents"] for k, v in after["in"].items()
            }
        ours = [kept for kept in documents if kept.row["held_out"] == held_out]
        assert steps[-1]["out"]["total"] == {"documents": len(ours), "tokens": sum(kept.tokens for kept in ours)}
    for step in FUNNEL:
        assert len(tally.samples[step]) <= SAMPLES


def test_samples_are_the_same_whatever_the_order(chosen) -> None:
    _, tally = chosen()
    rows = [item for step in FUNNEL for _, _, item in tally.samples[step]]
    assert rows
    again, one = Tally(), Tally()
    documents = [
        Kept(
            {"held_out": False, "tokens": 1, "quality": "x", "text": str(n)}
            | dict.fromkeys(("source", "language", "probability", "score", "words"), 0),
            str(n),
            "english",
            1,
        )
        for n in range(50)
    ]
    for tallied, each in ((again, documents), (one, documents[::-1])):
        for kept in each:
            tallied.add(kept, FUNNEL.index("quality"))
    texts = [{item["text"] for _, _, item in tallied.samples["quality"]} for tallied in (again, one)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == SAMPLES


def test_repeated_documents_come_after_all_others(chosen, make) -> None:
    shares = make(shares=None).order().selection._replace()
    from dsv2.data.corpus.settings import Shares

    once = sum(kept.tokens for kept in training(chosen()[0]) if kept.domain == "code")
    documents, tally = chosen(shares=Shares.Config(weights={"code": 1.0}, tokens=2 * once))
    texts = [kept.text for kept in training(documents)]
    assert {kept.domain for kept in training(documents)} == {"code"}
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]
    assert tally.repeated["code"] == once
    assert shares.shares is None


def test_what_is_contentious_is_a_matter_of_thresholds(make) -> None:
    selection: Selection = make().order().selection
    assert contested({"score": 0.6, "words": 0.0}, selection)
    assert contested({"score": 0.0, "words": 5.1}, selection)
    assert not contested({"score": 0.59, "words": 5.0}, selection)
    assert len(FUNNEL) == KEPT
    assert np.uint8(KEPT) == KEPT
