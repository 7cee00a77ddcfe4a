"""Generated worksheets: what they state is true, and what is held out is never trained on."""

import math
import re
from fractions import Fraction

import pytest

from dsv2.data.maths import PER_DOCUMENT, RESERVED, Worksheet, is_reserved, worksheets


def texts(num_bytes: int, seed: int = 0) -> list[str]:
    return [sheet.text for sheet in worksheets(num_bytes, val_ratio=0.1, seed=seed)]


def exercises(sheets: list[Worksheet], *, held_out: bool) -> list[str]:
    return [text for sheet in sheets if sheet.held_out == held_out for text in sheet.text.strip().split("\n\n")]


def test_a_pure_function_of_its_arguments() -> None:
    assert texts(20_000) == texts(20_000)
    assert texts(20_000) == texts(40_000)[: len(texts(20_000))]
    assert set(texts(20_000, seed=1)).isdisjoint(texts(20_000))


@pytest.mark.parametrize("val_ratio", [0.01, 0.1, 0.5, 0.99])
def test_no_exercise_is_on_both_sides(val_ratio: float) -> None:
    sheets = list(worksheets(1_000_000, val_ratio=val_ratio))
    trained, held_out = (exercises(sheets, held_out=side) for side in (False, True))
    assert set(trained).isdisjoint(held_out)
    assert len(held_out) / len(trained + held_out) == pytest.approx(val_ratio, abs=0.02)
    assert not any(map(is_reserved, trained + held_out))


def test_a_tenth_of_all_exercises_is_reserved() -> None:
    """Of the 465 pairs of roots, every one is drawn in 4 MB: what is missing is what is reserved."""
    seen = {text.partition("\n")[0] for text in exercises([*worksheets(4_000_000, val_ratio=0.1)], held_out=False)}
    seen |= {text.partition("\n")[0] for text in exercises([*worksheets(4_000_000, val_ratio=0.1)], held_out=True)}
    quadratics = sum(problem.startswith("Solve x^2") for problem in seen)
    assert 1 - quadratics / 465 == pytest.approx(RESERVED, abs=0.05)  # three deviations of a share of 465


@pytest.mark.parametrize(("num_bytes", "val_ratio"), [(1000, 0.1), (2000, 0.9), (3000, 0.05)])
def test_a_small_amount_has_both_sides(num_bytes: int, val_ratio: float) -> None:
    sheets = list(worksheets(num_bytes, val_ratio=val_ratio))
    assert {sheet.held_out for sheet in sheets} == {True, False}


def test_shares_near_nothing_and_everything_end() -> None:
    for val_ratio in (1e-12, 1 - 1e-12):
        assert len({sheet.held_out for sheet in worksheets(50_000, val_ratio=val_ratio)}) == 1


def test_every_equation_of_numbers_holds() -> None:
    text = "\n".join(texts(50_000))
    checked = 0
    for left, right in re.findall(r"^([\d+*/() -]+) = ([\d+*/() -]+)$", text, re.MULTILINE):
        assert abs(eval(left) - eval(right)) < 1e-9, (left, right)
        checked += 1
    assert checked > 200


def test_solutions_solve() -> None:
    text = "\n".join(texts(50_000))
    linear = re.findall(r"Solve (\d+)x \+ (\d+) = (-?\d+)\.(?:.*\n)*?Answer: x = (-?\d+)", text)
    assert len(linear) > 20
    assert all(int(a) * int(x) + int(b) == int(c) for a, b, c, x in linear)


def test_answers_are_those_of_the_problem() -> None:
    """Read back from the first line of each exercise, kind by kind, and worked out anew."""
    seen = dict.fromkeys(("Compute", "Multiply", "Solve", "Find", "Add"), 0)
    for exercise in "\n".join(texts(50_000)).split("\n\n"):
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
    for text in texts(20_000):
        assert text.count("Answer: ") == PER_DOCUMENT == 12
        assert text.endswith("\n")


def test_worksheets_end_where_the_amount_is_reached() -> None:
    """Whole documents: what is more than asked for is less than one of them."""
    sizes = list(map(len, texts(20_000)))
    assert sum(sizes) >= 20_000 > sum(sizes[:-1])
    assert texts(0) == []
