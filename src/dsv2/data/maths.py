"""Worked exercises in arithmetic and algebra, generated from a seed."""

import math
import random
from collections.abc import Callable, Iterator

PER_DOCUMENT = 12  # exercises, about 1 kB

Draw = Callable[[int, int], int]  # draws an integer between two bounds, inclusive


def worksheets(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Yield documents of PER_DOCUMENT exercises until `num_bytes` are reached. A pure function of the arguments."""
    made = number = 0
    while made < num_bytes:
        rng = random.Random(f"{seed}/{number}")
        text = "\n\n".join(rng.choice(EXERCISES)(rng.randint) for _ in range(PER_DOCUMENT)) + "\n"
        made += len(text)
        number += 1
        yield text


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
    p, q = sorted((draw(1, 12), draw(1, 12)))
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
