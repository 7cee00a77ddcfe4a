"""A judge that follows a rule, for questions whose right reply is known."""

from dsv2.evaluation.judges.protocol import Failed, Question, Word


class RuleJudge:
    """Prefers the right answer; of two that are right or wrong alike, neither."""

    def compare(self, question: Question, first: str, second: str) -> Word | Failed:
        """Say which answer is right; fails if that is not known."""
        if question.reference is None:
            return Failed("the right reply is not known")
        first_right, second_right = (answer.strip() == question.reference.strip() for answer in (first, second))
        return "tie" if first_right == second_right else "first" if first_right else "second"
