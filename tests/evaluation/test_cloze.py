"""Cloze questions: where they are cut from, and where the text is too short for them."""

from collections.abc import Callable

import numpy as np
import pytest

from dsv2.config import ConfigError
from dsv2.data.packing import PackedText
from dsv2.data.store import Split
from dsv2.evaluation import cloze
from dsv2.evaluation.choice import CHOICES, Choice

HeldOut = Callable[..., list[Choice]]


def test_questions_are_cut_from_held_out_text(two_domains: PackedText, held_out: HeldOut) -> None:
    """Context and truth follow each other in one held-out document; choices differ and are of the same domain."""
    split = two_domains.store.val
    ends = [*split.starts[1:].tolist(), len(split.tokens)]
    texts = [
        (int(domain), split.tokens[start : end - 1].tolist())
        for start, end, domain in zip(split.starts, ends, split.domains, strict=True)
    ]
    questions = held_out(two_domains)

    def within(domain: int, ids: list[int]) -> bool:
        return any(
            d == domain and ids == text[i : i + len(ids)] for d, text in texts for i in range(len(text) - len(ids) + 1)
        )

    assert [question.domain for question in questions] == [0] * 20 + [1] * 20
    for context, continuations, domain in questions:
        assert within(domain, [*context, *continuations[0]])
        assert all(within(domain, list(other)) for other in continuations)
        assert len({tuple(other) for other in continuations}) == CHOICES
    assert questions == held_out(two_domains)  # a pure function
    assert len({tuple(question.context) for question in questions}) > 35


@pytest.mark.parametrize(("count", "expected"), [(7, [4, 3]), (1, [1, 0]), (8, [4, 4])])
def test_every_domain_is_asked_as_often_as_any_other(
    two_domains: PackedText, held_out: HeldOut, count: int, expected: list[int]
) -> None:
    domains = [question.domain for question in held_out(two_domains, count=count)]
    assert [domains.count(0), domains.count(1)] == expected


def documents(*lengths: int) -> Split:
    """One domain whose token number n is n + 1, but for the 0 that ends each document."""
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = 0
    return Split(tokens, np.cumsum([0, *lengths[:-1]]), np.zeros(len(lengths), dtype=np.int8))


def test_distractors_end_other_windows_that_do_not_overlap_the_question() -> None:
    """Of every question on one text of different tokens, each choice is a window's end, and apart from the question."""
    questions = cloze.questions(documents(200), ["text"], count=30, context=5, continuation=3)
    for context, (truth, *distractors), _ in questions:
        first = context[0]
        assert [*context, *truth] == list(range(first, first + 8))
        for distractor in distractors:
            start = distractor[0]
            assert distractor == [start, start + 1, start + 2]
            assert start >= 1 + 5  # its own window's context lies before it, in the document
            assert start + 2 < first or start >= first + 8


def test_no_question_spans_documents() -> None:
    """Documents of 9 tokens, one of which ends it, have one window of 8 each; one of 8 has none."""
    questions = cloze.questions(documents(9, 9, 8, 9, 9, 9), ["text"], count=20, context=5, continuation=3)
    starts = {question.context[0] for question in questions}
    assert starts <= {1, 10, 27, 36, 45}
    assert len(starts) > 1


def test_too_little_text_is_an_error(source: PackedText, held_out: HeldOut) -> None:
    message = r"cloze_context=99996 is not valid: .* have no 4 disjoint, different windows of 99996 \+ 4 tokens"
    with pytest.raises(ConfigError, match=message):
        held_out(source, context=99_996)


def test_text_that_repeats_itself_has_no_distractors() -> None:
    """Many windows, but all of their ends alike: refused instead of asked with equal choices."""
    split = documents(200)._replace(tokens=np.append(np.full(199, 5, dtype=np.uint16), np.uint16(0)))
    with pytest.raises(ConfigError, match=r"cloze_context=5 is not valid: .* disjoint, different windows"):
        cloze.questions(split, ["text"], count=1, context=5, continuation=3)
