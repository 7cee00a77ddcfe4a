"""Exercises as the domain maths has them, newly generated: which of four answers follows the worked solution?

Choice instead of exact digits, since its chance is 25% with every tokenizer, and a model far too small to
calculate already shows what it has: answers copied from the line above, and those of the right form and size.
"""

import random

from dsv2.data.maths import EXERCISES
from dsv2.data.tokenizer import Tokenizer
from dsv2.evaluation.choice import CHOICES, Choice

DOMAIN = "maths"  # of the corpora's documents that `data.maths` makes
ANSWER = "Answer:"


def questions(tokenizer: Tokenizer, *, domain: int, count: int, longest: int) -> list[Choice]:
    """`count` questions of the kinds in turn; distractors are answers of other exercises of the same kind.

    A context is cut from the left so that it fits into `longest` tokens with each answer. The exercises are drawn from
    a seed that no worksheet has; kinds with few exercises may still repeat one that was trained on.
    """
    chance = random.Random("exercises that no worksheet asked")
    made = []
    for number in range(count):
        kind = EXERCISES[number % len(EXERCISES)]
        problem, answer = _parts(kind(chance.randint))
        answers = [answer]
        while len(answers) < CHOICES:
            if (other := _parts(kind(chance.randint))[1]) not in answers:
                answers.append(other)
        encoded = tokenizer.encode_batch(answers)
        room = longest - max(map(len, encoded))
        made.append(Choice(tokenizer.encode(problem)[-room:], encoded, domain))
    return made


def _parts(exercise: str) -> tuple[str, str]:
    """Up to the answer, and the answer with the space before it."""
    head, _, answer = exercise.rpartition(ANSWER)
    return head + ANSWER, answer
