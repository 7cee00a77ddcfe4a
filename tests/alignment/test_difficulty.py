"""How hard tasks are, by hand."""

import pytest

from dsv2.alignment.difficulty import difficulty, in_words
from dsv2.data.chats import Prompt
from dsv2.data.verification import Answer
from dsv2.evaluation.following import Verified
from dsv2.evaluation.verifiers import Verdict


def group(domain: int, *scores: float | None) -> Verified:
    return Verified(Prompt([1], Answer(""), domain), [], [Verdict(score) for score in scores])


def test_tasks_are_told_apart() -> None:
    groups = [group(0, 1, 0, 0, 1), group(0, 1, 1, 1, 1), group(1, 0, 0, 0, 0), group(1, 0, 0, 0, 1)]
    table = difficulty(groups, ["easy", "hard"]).set_index("task")
    assert table.loc["easy"].tolist() == [2, 0.75, 1.0, 0.5, True]
    assert table.loc["hard"].tolist() == [2, 0.125, 0.5, 0.5, False]
    assert table.loc["all"].tolist() == [4, 0.4375, 0.75, 0.5, True]
    assert in_words(table.reset_index()).startswith("easy p@1 0.75, pass@G 1.00, no variance 50%; hard p@1 0.12")


def test_answers_without_a_verdict_count_for_nothing() -> None:
    table = difficulty([group(0, None, 1, 0), group(0, None, None, None)], ["only"])
    assert table["task"].tolist() == ["only"]
    assert table.iloc[0].tolist()[1:] == [1, 0.5, pytest.approx(1.0), 0.0, True]
