"""Generated worksheets: what they state is true."""

import math
import re
from fractions import Fraction

from dsv2.data.maths import PER_DOCUMENT, worksheets


def test_a_pure_function_of_its_arguments() -> None:
    assert list(worksheets(20_000)) == list(worksheets(20_000))
    assert list(worksheets(20_000)) == list(worksheets(40_000))[: len(list(worksheets(20_000)))]
    assert set(worksheets(20_000, seed=1)).isdisjoint(worksheets(20_000))


def test_every_equation_of_numbers_holds() -> None:
    text = "\n".join(worksheets(50_000))
    checked = 0
    for left, right in re.findall(r"^([\d+*/() -]+) = ([\d+*/() -]+)$", text, re.MULTILINE):
        assert abs(eval(left) - eval(right)) < 1e-9, (left, right)
        checked += 1
    assert checked > 200


def test_solutions_solve() -> None:
    text = "\n".join(worksheets(50_000))
    linear = re.findall(r"Solve (\d+)x \+ (\d+) = (-?\d+)\.(?:.*\n)*?Answer: x = (-?\d+)", text)
    assert len(linear) > 20
    assert all(int(a) * int(x) + int(b) == int(c) for a, b, c, x in linear)


def test_answers_are_those_of_the_problem() -> None:
    """Read back from the first line of each exercise, kind by kind, and worked out anew."""
    seen = dict.fromkeys(("Compute", "Multiply", "Solve", "Find", "Add"), 0)
    for exercise in "\n".join(worksheets(50_000)).split("\n\n"):
        problem, *_, last = exercise.strip().splitlines()
        answer = last.removeprefix("Answer: ")
        numbers = [int(digits) for digits in re.findall(r"\d+", problem)]
        kind = problem.split()[0]
        seen[kind] += 1
        if kind == "Compute":
            assert int(answer) == numbers[0] + numbers[1] - numbers[2]
        elif kind == "Multiply":
            assert int(answer) == numbers[0] * numbers[1]
        elif kind == "Find":
            assert int(answer) == math.gcd(*numbers)
        elif kind == "Add":
            assert Fraction(answer) == Fraction(*numbers[:2]) + Fraction(*numbers[2:])
            assert str(Fraction(answer)) == answer  # in lowest terms
        elif problem.startswith("Solve x^2"):
            _, total, product, _ = numbers
            roots = [int(root) for root in re.findall(r"x = (\d+)", answer)]
            assert all(root * root - total * root + product == 0 for root in roots)
            assert sum(roots) == total if len(roots) == 2 else 2 * roots[0] == total
    assert min(seen.values()) > 20


def test_a_worksheet_has_twelve_exercises() -> None:
    for text in worksheets(20_000):
        assert text.count("Answer: ") == PER_DOCUMENT == 12
        assert text.endswith("\n")


def test_worksheets_end_where_the_amount_is_reached() -> None:
    """Whole documents: what is more than asked for is less than one of them."""
    texts = list(worksheets(20_000))
    assert sum(map(len, texts)) >= 20_000 > sum(map(len, texts[:-1]))
    assert list(worksheets(0)) == []
