"""Needle in a haystack: where needles lie, what a model that knows and one that guesses get, and which sizes fit."""

import random

import pandas as pd
import pytest
import torch

import dsv2
from dsv2.config import ConfigError
from dsv2.data.needles import ANSWERS
from dsv2.evaluation.needle import COLUMNS, Hidden, NeedleGrid
from dsv2.metrics import METRICS, chance, quantity
from tests.references.haystacks import packed, store
from tests.references.stubs import Stub, knowing, uniform
from tests.references.tolerances import FLOAT32

SIZES = NeedleGrid.Config(trained_length=60, multiples=(1, 2), depths=3, questions=4)


def prompt_of(hidden: Hidden) -> list[int]:
    return list(hidden.asked.context)


@pytest.mark.parametrize("prefix", [(), (7, 8)])
def test_lengths_are_exact_and_depth_is_from_the_first_place_to_the_last(
    prefix: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with tokens that begin every prompt, which come before the text."""
    monkeypatch.setattr(store().tokenizer, "prefix", prefix)
    hidden = SIZES.build(packed()).hidden
    assert [(each.length, each.depth, each.question) for each in hidden] == [
        (length, depth, question) for length in (60, 120) for depth in (0.0, 0.5, 1.0) for question in range(4)
    ]
    for each in hidden:
        prompt, sentence = prompt_of(each), each.needle.sentence
        assert len(prompt) + len(each.asked.continuation) - 1 == each.length
        assert tuple(prompt[: len(prefix)]) == prefix
        question = prompt[-len(each.needle.question) :]
        assert question == each.needle.question
        text = prompt[len(prefix) : -len(question)]
        room = len(text) - len(sentence)
        place = {0.0: 0, 0.5: round(room / 2), 1.0: room}[each.depth]
        assert text[place : place + len(sentence)] == sentence


def test_every_question_has_a_text_of_its_own_that_is_held_out_and_without_the_needle() -> None:
    tokenizer, val, haystacks = store().tokenizer, store().val.tokens.tolist(), []
    for hidden in SIZES.build(packed()).hidden:
        prompt, sentence = prompt_of(hidden)[: -len(hidden.needle.question)], hidden.needle.sentence
        (place,) = (index for index in range(len(prompt)) if prompt[index : index + len(sentence)] == sentence)
        haystack = prompt[:place] + prompt[place + len(sentence) :]
        assert any(val[index : index + len(haystack)] == haystack for index in range(len(val)))
        assert not hidden.needle.occurs_in(tokenizer.decode(haystack))
        haystacks.append(tuple(haystack))
    assert len(set(haystacks)) == len(haystacks)


def test_questions_are_a_pure_function_and_their_wordings_take_turns() -> None:
    state = random.getstate()
    first, second = SIZES.build(packed(seed=0)).hidden, SIZES.build(packed(seed=5, length=32)).hidden
    assert first == second
    assert random.getstate() == state
    assert [each.needle.wording for each in first] == [0, 1, 2, 0] * 6
    assert len({each.needle.answer for each in first}) > 12


def test_a_model_that_knows_finds_all_and_one_that_does_not_finds_none() -> None:
    grid = SIZES.build(packed())
    size = store().tokenizer.vocab_size
    texts = [[*each.asked.context, *each.asked.continuation] for each in grid.hidden]
    found = grid.measure(knowing(texts, size), batch_tokens=100)
    assert found.columns.tolist() == COLUMNS
    assert found["correct"].all()
    assert found["nats"].between(-0.01, 0).all()
    assert list(found["length"]) == [each.length for each in grid.hidden]
    lost = grid.measure(uniform(size), batch_tokens=1000)
    assert not lost["correct"].any()
    log_size = torch.tensor(float(len(store().tokenizer.ids))).log().item()
    assert lost["nats"].tolist() == pytest.approx(
        [-log_size * len(each.asked.continuation) for each in grid.hidden], rel=FLOAT32
    )


def test_an_answer_is_found_only_if_all_of_it_is() -> None:
    """A model that knows all but the last token of each answer, among those of at least two."""
    grid = NeedleGrid(packed(), [60], depths=2, questions=12)
    assert any(len(each.asked.continuation) > 1 for each in grid.hidden)
    texts = [[*each.asked.context, *each.asked.continuation[:-1]] for each in grid.hidden]
    table = grid.measure(knowing(texts, store().tokenizer.vocab_size), batch_tokens=1000)
    assert not table["correct"].any()


def test_guessing_an_answer_is_right_by_chance() -> None:
    """A model that has learnt the form says one answer always; over all needles that is right one time in 64."""
    level, tokenizer = chance("bench/needle"), store().tokenizer
    assert level == 1 / len(ANSWERS)
    spelled = tokenizer.encode(" amber")

    def guess(read: tuple[int, ...]) -> torch.Tensor:
        said = next(n for n in range(len(spelled), -1, -1) if n == 0 or list(read[-n:]) == spelled[:n])
        logits = torch.zeros(tokenizer.vocab_size)
        logits[spelled[said % len(spelled)]] = 9.0
        return logits

    grid = NeedleGrid(packed(), [48], depths=2, questions=150)
    share = grid.measure(Stub(guess), batch_tokens=10_000)["correct"].mean()
    assert abs(share - level) < 4 * (level * (1 - level) / 150) ** 0.5


def test_scores_are_means_with_errors_over_questions_by_multiples_or_tokens() -> None:
    rows = [(100, 0.0, 0, 0, True, -1.0), (100, 1.0, 0, 0, True, -1.0), (100, 0.0, 1, 1, False, -3.0)]
    rows += [(100, 1.0, 1, 1, True, -1.0), *((200, depth, q, 0, False, -4.0) for q in (0, 1) for depth in (0.0, 1.0))]
    table = pd.DataFrame(rows, columns=COLUMNS)
    scores = NeedleGrid(packed(), [100, 200], depths=2, questions=2).scores(table)
    assert scores["bench/needle"].mean == 3 / 8
    assert scores["bench/needle_nats"].mean == -22 / 8
    assert scores["bench/needle_100"] == pytest.approx((0.75, 0.25))  # of 1, 1, 0, 1: sd 1/2, over 2
    assert scores["bench/needle_200"] == (0.0, 0.0)
    assert set(scores) == {"bench/needle", "bench/needle_nats", "bench/needle_100", "bench/needle_200"}
    named = NeedleGrid.Config(trained_length=100, multiples=(1, 2)).build(packed()).scores(table)
    assert list(named.values()) == list(scores.values())
    assert set(named) == {"bench/needle", "bench/needle_nats", "bench/needle_1x", "bench/needle_2x"}


def test_a_failure_does_not_end_the_training() -> None:
    def fail(_: tuple[int, ...]) -> torch.Tensor:
        raise ValueError("positions beyond the limit")

    measured = SIZES.build(packed()).run(Stub(fail), batch_tokens=100)
    assert measured.scores == {}
    assert measured.needles is None
    assert "positions beyond the limit" in measured.failed["needle"]


def test_metrics_have_names_and_a_chance() -> None:
    assert {"bench/needle", "bench/needle_nats"} <= METRICS.keys()
    assert quantity("bench/needle_4x").label == "needle, 4x (share found)"
    assert quantity("bench/needle_nats").name == "needle log-probability"
    assert chance("bench/needle_4x") == 1 / 64
    assert chance("bench/needle_nats") == pytest.approx(-4.1589, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multiples": ()}, "multiples=() is not valid: at least one, all positive and different"),
        ({"multiples": (2, 2)}, "multiples=(2, 2) is not valid"),
        ({"multiples": (0, 1)}, "multiples=(0, 1) is not valid"),
        ({"trained_length": 0}, "trained_length=0 is not valid: positive"),
        ({"depths": 1}, "depths=1 is not valid: at least 2"),
        ({"questions": 0}, "questions=0 is not valid: positive"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        NeedleGrid.Config(**settings)  # type: ignore[arg-type]
    assert str(refused.value).startswith(message)


def test_lengths_that_the_text_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8 tokens: must be at least \d+, those of a needle and its question"):
        NeedleGrid(packed(), [80, 8], depths=2, questions=1)
    with pytest.raises(
        ConfigError, match=r"benchmarks\.trained_length=99999 is not valid: 99999 tokens: the text has only"
    ):
        NeedleGrid.Config(trained_length=99_999).build(packed())


def test_it_is_part_of_a_run() -> None:
    run = dsv2.load(["benchmarks=needle"])
    assert run.benchmarks == NeedleGrid.Config()  # the YAML says what the defaults are
    assert run.fingerprint() != dsv2.load(["benchmarks=text"]).fingerprint()
    with pytest.raises(ConfigError, match="benchmarks='needle' is not valid: none for data without text"):
        dsv2.load(["benchmarks=needle", "data=synthetic"])
    limited = ["model/rope=yarn", "model.rope.yarn.original_length=128", "model.rope.yarn.factor=8"]
    message = r"benchmarks\.multiples=.* is not valid: multiples of 128 up to 1024, the positions of model\.rope"
    with pytest.raises(ConfigError, match=message):
        dsv2.load(["benchmarks=needle", *limited])
    assert dsv2.load(["benchmarks=needle", "benchmarks.multiples=[1,8]", *limited])
