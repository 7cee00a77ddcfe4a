"""Worked exercises in arithmetic and algebra, generated from a seed."""

import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dsv2.data.documents import fraction, text_digest

PER_DOCUMENT = 12  # exercises, about 1 kB
RESERVED = 0.1  # share of all exercises that no worksheet has, from which questions are asked

Draw = Callable[[int, int], int]  # draws an integer between two bounds, inclusive


class Worksheet(NamedTuple):
    """A document of PER_DOCUMENT exercises, all of them held out or none."""

    text: str
    held_out: bool


def worksheets(num_bytes: int, *, val_ratio: float, seed: int = 0) -> Iterator[Worksheet]:
    """Yield worksheets until `num_bytes` are reached. A pure function of the arguments.

    An exercise's own text decides whether it is held out (a share `val_ratio`), trained on or reserved for questions,
    so that nothing held out occurs in training. A side without a whole worksheet ends with the exercises it has.
    """
    rng = random.Random(f"worksheets {seed}")
    begun: dict[bool, list[str]] = {False: [], True: []}
    made, sides = 0, set()
    while made < num_bytes:
        exercise = rng.choice(EXERCISES)(rng.randint)
        if is_reserved(exercise):
            continue
        held_out = _place(exercise) < val_ratio * (1 - RESERVED)
        begun[held_out].append(exercise)
        if len(begun[held_out]) == PER_DOCUMENT:
            yield (sheet := _worksheet(begun[held_out], held_out))
            made += len(sheet.text)
            sides.add(held_out)
            begun[held_out] = []
    for held_out, exercises in begun.items():
        if exercises and held_out not in sides:
            yield _worksheet(exercises, held_out)


def is_reserved(exercise: str) -> bool:
    """Whether no worksheet has this exercise."""
    return _place(exercise) >= 1 - RESERVED


def _place(exercise: str) -> float:
    return fraction(text_digest(exercise))


def _worksheet(exercises: list[str], held_out: bool) -> Worksheet:
    return Worksheet("\n\n".join(exercises) + "\n", held_out)


def addition(draw: Draw) -> str:
    a, b, c = draw(10, 9999), draw(10, 9999), draw(10, 999)
    return f"Compute {a} + {b} - {c}.\n{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}\nAnswer: {a + b - c}"


def multiplication(draw: Draw) -> str:
    a, tens, ones = draw(12, 99), draw(1, 9), draw(1, 9)
    b = 10 * tens + ones
    return (
        f"Multiply {a} by {b}.\n{a} * {b} = {a} * {10 * tens} + {a} * {ones}\n"
        f"= {a * 10 * tens} + {a * ones}\n= {a * b}\nAnswer: {a * b}"
    )


def linear(draw: Draw) -> str:
    a, x, b = draw(2, 12), draw(-20, 20), draw(1, 50)
    c = a * x + b
    return f"Solve {a}x + {b} = {c}.\n{a}x = {c} - {b} = {a * x}\nx = {a * x} / {a} = {x}\nAnswer: x = {x}"


def quadratic(draw: Draw) -> str:
    p, q = sorted((draw(1, 30), draw(1, 30)))
    return (
        f"Solve x^2 - {p + q}x + {p * q} = 0.\nThe roots have sum {p + q} and product {p * q}: {p} and {q}.\n"
        f"(x - {p})(x - {q}) = 0\nAnswer: x = {p}" + ("" if p == q else f" or x = {q}")
    )


def divisor(draw: Draw) -> str:
    a, b = sorted((draw(20, 999), draw(20, 999)), reverse=True)
    lines = [f"Find the greatest common divisor of {a} and {b}."]
    while b:
        lines.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return "\n".join([*lines, f"Answer: {a}"])


def fractions(draw: Draw) -> str:
    a, b, c, d = draw(1, 9), draw(2, 12), draw(1, 9), draw(2, 12)
    top, bottom = a * d + c * b, b * d
    common = math.gcd(top, bottom)
    answer = f"{top // common}" if bottom == common else f"{top // common}/{bottom // common}"
    return (
        f"Add {a}/{b} and {c}/{d}.\n{a}/{b} + {c}/{d} = ({a} * {d} + {c} * {b}) / ({b} * {d})\n"
        f"= {top}/{bottom}\nAnswer: {answer}"
    )


EXERCISES = (addition, multiplication, linear, quadratic, divisor, fractions)
