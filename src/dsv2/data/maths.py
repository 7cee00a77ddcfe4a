"""Worked exercises in arithmetic and algebra, generated from a seed."""

import random
from collections.abc import Iterator

PER_DOCUMENT = 12  # exercises, about 1 kB


def worksheets(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Documents of PER_DOCUMENT exercises each, until `num_bytes` are reached. A pure function of the arguments."""
    made = number = 0
    while made < num_bytes:
        draw = random.Random(f"{seed}/{number}").randint
        chance = random.Random(f"{seed}/{number}/kind")
        text = "\n\n".join(chance.choice(_EXERCISES)(draw) for _ in range(PER_DOCUMENT)) + "\n"
        made += len(text)
        number += 1
        yield text


def _sum(draw) -> str:  # type: ignore[no-untyped-def]
    a, b, c = draw(10, 9999), draw(10, 9999), draw(10, 999)
    return f"Compute {a} + {b} - {c}.\n{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}\nAnswer: {a + b - c}"
