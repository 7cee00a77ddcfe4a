"""Choosing among continuations, by models that know the text, that know nothing, and that know bigrams."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dsv2.data.packing import PackedText
from dsv2.evaluation.choice import Choice, answer, answer_both_ways, judge
from tests.references.stubs import Stub, knowing, uniform
from tests.references.tolerances import FLOAT32

VOCAB = 300
HeldOut = Callable[..., list[Choice]]


def test_scores_are_those_of_a_loop(source: PackedText, held_out: HeldOut) -> None:
    """Mean log-likelihood per byte of each choice, one sequence and one token at a time."""
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
    model, lengths, questions = Stub(lambda read: table[read[-1]]), source.token_bytes, held_out(source)
    right, margins = [], []
    for context, continuations, _ in questions:
        scores = []
        for continuation in continuations:
            read, nats = list(context), 0.0
            for token in continuation:
                logits = table[read[-1]].double()
                nats += (logits[token] - logits.exp().sum().log()).item()
                read.append(token)
            scores.append(nats / sum(int(lengths[token]) for token in continuation))
        right.append(scores[0] == max(scores))
        margins.append(scores[0] - max(scores[1:]))
    answers = answer(model, questions, lengths, batch_tokens=64)
    assert answers.correct.tolist() == right
    assert answers.margin == pytest.approx(margins, rel=FLOAT32, abs=FLOAT32)
    assert 0 < sum(right) < len(right)


def test_who_knows_the_text_answers_all(source: PackedText, held_out: HeldOut) -> None:
    questions = held_out(source)
    model = knowing([[*context, *choices[0]] for context, choices, _ in questions], VOCAB)
    answers = answer(model, questions, source.token_bytes, batch_tokens=64)
    assert answers.correct.mean() == 1
    assert answers.margin.min() > 0


def test_who_knows_nothing_is_right_one_time_in_four(source: PackedText, held_out: HeldOut) -> None:
    """With tokens of one length all four are equally likely: a quarter of a point each, whatever stands first."""
    answers = answer(uniform(VOCAB), held_out(source), np.ones(VOCAB, dtype=np.int32), batch_tokens=64)
    assert answers.correct.tolist() == [0.25] * 40
    assert answers.margin.tolist() == [0.0] * 40


def test_length_is_normalised_by_bytes() -> None:
    """Equal nats per byte are a tie, although the longer continuation is less likely in total; and bytes decide."""
    token_bytes = np.array([0, 1, 4, 2, 2], dtype=np.int32)
    tie = Choice([0], [[1, 1], [1], [1, 1, 1], [1]], 0)  # 1 byte per token, the same nats per token
    assert answer(uniform(5), [tie], token_bytes, batch_tokens=64).correct.tolist() == [0.25]
    longer = Choice([0], [[2, 2], [1, 1], [3, 3], [4, 4]], 0)  # 8 bytes for the price of 2 or 4
    answers = answer(uniform(5), [longer], token_bytes, batch_tokens=64)
    assert answers.correct.tolist() == [1.0]
    assert answers.margin == pytest.approx([2 * math.log(5) * (1 / 4 - 1 / 8)], rel=FLOAT32)


def test_by_context_a_common_text_is_no_likelier() -> None:
    """Of a text that is likely anywhere and one that the context makes likely, the second is chosen; with 2 bytes each
    the score is half the nats that the context saves."""
    log = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.5, 0.2, 0.1, 0.1]]).log()  # after 0, and after 1
    question = Choice([0, 1], [[2], [1], [3], [4]], 0)
    model, token_bytes = Stub(lambda read: log[read[-1]]), np.full(5, 2, dtype=np.int32)
    assert answer(model, [question], token_bytes, batch_tokens=64).correct.tolist() == [0.0]
    plain, informed = answer_both_ways(model, [question], token_bytes, start=0, batch_tokens=64)
    assert plain.correct.tolist() == [0.0]
    assert informed.correct.tolist() == [1.0]
    assert informed.margin == pytest.approx([math.log(0.2 / 0.1) / 2], rel=FLOAT32)  # the others but 1 save nothing
    _, guessed = answer_both_ways(uniform(5), [question], token_bytes, start=0, batch_tokens=64)
    assert guessed.correct.tolist() == [0.25]


def test_bigrams_of_the_training_text_beat_chance(source: PackedText, held_out: HeldOut) -> None:
    counts = torch.full((VOCAB, VOCAB), 0.1)
    tokens = torch.from_numpy(source.store.train.tokens.astype(np.int64))
    counts.index_put_((tokens[:-1], tokens[1:]), torch.tensor(1.0), accumulate=True)
    logits = counts.log()
    questions = held_out(source, count=400, context=3, continuation=2)
    answers = answer(Stub(lambda read: logits[read[-1]]), questions, source.token_bytes, batch_tokens=640)
    assert answers.correct.mean() > 0.25 + 4 * math.sqrt(0.25 * 0.75 / 400)  # four standard deviations of guessing


def test_a_tie_is_shared_and_the_margin_is_to_the_best_distractor() -> None:
    """By hand: won by 1, lost by 2, shared by two and by three, and a tie of the others."""
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [4.0, 4.0, 4.0], [1.0, 2.0, 2.0]])
    answers = judge(scores)
    assert answers.correct.tolist() == pytest.approx([1, 0, 1 / 2, 1 / 3, 0])
    assert answers.margin.tolist() == [1.0, -2.0, 0.0, 0.0, -1.0]
