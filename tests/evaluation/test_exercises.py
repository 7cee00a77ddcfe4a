"""Exercises with four answers: the right one follows the worked solution, and every context fits."""

import pytest

from dsv2.config import ConfigError
from dsv2.data.maths import EXERCISES, worksheets
from dsv2.data.packing import PackedText
from dsv2.data.tokenizer import Tokenizer
from dsv2.evaluation import exercises
from dsv2.evaluation.choice import CHOICES, Choice, answer
from tests.references.stubs import knowing


@pytest.fixture
def tokenizer(two_domains: PackedText) -> Tokenizer:
    return two_domains.store.tokenizer


def asked(tokenizer: Tokenizer, longest: int = 4096) -> list[Choice]:
    return exercises.questions(tokenizer, domain=0, count=12, longest=longest)


def test_exercises_have_one_right_answer(two_domains: PackedText, tokenizer: Tokenizer) -> None:
    questions = asked(tokenizer)
    for context, choices, _ in questions:
        text, answers = tokenizer.decode(context), [tokenizer.decode(choice) for choice in choices]
        assert text.endswith("Answer:")
        assert all(other.startswith(" ") for other in answers)
        assert len(set(answers)) == CHOICES
    first = tokenizer.decode(questions[0].context).splitlines()[0]
    a, b, c = (int(word.rstrip(".")) for word in first.split() if word.rstrip(".").isdigit())
    assert tokenizer.decode(questions[0].continuations[0]) == f" {a + b - c}"
    known = knowing([[*context, *choices[0]] for context, choices, _ in questions], 300)
    assert answer(known, questions, two_domains.token_bytes, batch_tokens=4096).correct.mean() == 1


def test_contexts_are_cut_from_the_left_to_fit_with_every_answer(tokenizer: Tokenizer) -> None:
    for whole, cut in zip(asked(tokenizer), asked(tokenizer, longest=20), strict=True):
        longest = max(map(len, whole.continuations))
        assert list(cut.context) == list(whole.context)[-(20 - longest) :]


def test_no_question_is_on_a_worksheet(tokenizer: Tokenizer) -> None:
    """Of the full mixture, as studies train on it; the tokenizer of 300 tokens gives back every character."""
    sheets = worksheets(4_000_000, val_ratio=0.1)
    seen = {exercise for sheet in sheets for exercise in sheet.text.strip().split("\n\n")}
    questions = exercises.questions(tokenizer, domain=0, count=64, longest=4096)
    texts = [tokenizer.decode([*context, *choices[0]]) for context, choices, _ in questions]
    assert all("Answer: " in text and text not in seen for text in texts)


def test_kinds_take_turns_and_nothing_depends_on_the_call(tokenizer: Tokenizer) -> None:
    questions = asked(tokenizer)
    assert questions == asked(tokenizer)
    verbs = [tokenizer.decode(question.context).split()[0] for question in questions]
    assert verbs == verbs[: len(EXERCISES)] * 2
    assert verbs[: len(EXERCISES)] == ["Compute", "Multiply", "Solve", "Solve", "Find", "Add"]
    assert len({tuple(question.context) for question in questions}) == 12


def test_answers_that_leave_no_room_for_a_question_are_refused(two_domains: PackedText) -> None:
    with pytest.raises(ConfigError, match=r"trainer.sequence_length=2 is not valid: more than \d+, the tokens of an"):
        exercises.questions(two_domains.tokenizer, domain=0, count=8, longest=2)
