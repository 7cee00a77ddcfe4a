"""The rule: right before wrong."""

from dsv2.evaluation.judges.protocol import Failed, Question, judged, win_rate
from dsv2.evaluation.judges.rules import RuleJudge


def test_the_right_answer_is_preferred() -> None:
    judge, question = RuleJudge(), Question("2 + 2?", "4")
    assert judge.compare(question, " 4\n", "5") == "first"
    assert judge.compare(question, "5", "4") == "second"
    assert judge.compare(question, "4", "4") == judge.compare(question, "5", "6") == "tie"
    assert isinstance(judge.compare(Question("?"), "a", "b"), Failed)


def test_a_model_that_is_right_wins() -> None:
    questions = [Question("1?", "1"), Question("2?", "2"), Question("3?")]
    found = win_rate(judged(RuleJudge(), questions, ["1", "2", "3"], ["x", "2", "y"]))
    assert (found.rate, found.n, found.ties, found.errors) == (0.75, 2, 1, 1)
