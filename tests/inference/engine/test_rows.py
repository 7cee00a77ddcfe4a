"""Rows of a cache: whatever is admitted, promoted and released, a row holds the tokens of its request and no others."""

import random

import numpy as np
import pytest
import torch

from dsv2.inference.cache import LayerCache, ModelCache
from dsv2.inference.engine.request import Generation, Request
from dsv2.inference.engine.rows import LEAST, Contents, Rows, Shared


def empty(rows: int = 3) -> Rows:
    """Rows of 64 tokens, whose cache holds the tokens' own numbers in two layers."""
    made = Rows(ModelCache([LayerCache((torch.zeros(rows, 64, 1, dtype=torch.int64),)) for _ in range(2)]))
    made.use_weights("first")
    return made


def admit(rows: Rows, prompt: list[int]) -> Generation:
    """Admit a request and read its prompt, all but what it shares."""
    generation = Generation(Request(prompt=prompt, max_new_tokens=9), None, None)
    rows.admit(generation, np.array(prompt), rows.shared(np.array(prompt)))
    read(rows, generation, prompt[generation.prefilled :])
    generation.prefilled = len(prompt)
    return generation


def read(rows: Rows, generation: Generation, tokens: list[int]) -> None:
    """Store tokens in the row of a request, which has one."""
    assert generation.row is not None
    cache = rows.cache.rows(generation.row, generation.row + 1)
    places = cache.places(len(tokens))
    for layer in cache:
        layer.write(torch.tensor(tokens)[None, :, None], places=places)
    cache.advance(places)


def held(rows: Rows, row: int) -> list[int]:
    both = [layer.read(int(rows.cache.lengths[row]))[0][row, :, 0].tolist() for layer in rows.cache]
    assert both[0] == both[1]
    tokens: list[int] = both[0]
    return tokens


@pytest.mark.parametrize("seed", range(10))
def test_each_request_keeps_its_tokens(seed: int) -> None:
    draw = random.Random(seed)
    rows, running = empty(draw.choice([1, 2, 5])), dict[int, list[int]]()
    generations = dict[int, Generation]()
    beginnings = [[draw.randrange(9) for _ in range(40)] for _ in range(3)]
    for number in range(150):
        action = draw.random()
        if action < 0.4 and rows.free:
            prompt = draw.choice(beginnings)[: draw.randint(1, 40)]
            prompt = [*prompt, 100 + number]
            generations[number] = admit(rows, prompt)
            running[number] = prompt
        elif action < 0.6:
            fresh = [n for n in running if (generations[n].row or 0) >= rows.decoding]
            if fresh:
                rows.promote(generations[draw.choice(fresh)])
        elif action < 0.8 and running:
            number = draw.choice([*running])
            token = draw.randrange(9)
            if len(running[number]) < 64:
                read(rows, generations[number], [token])
                generations[number].tokens.append(token)
                running[number].append(token)
        elif running:
            number = draw.choice([*running])
            rows.release(generations.pop(number))
            assert running.pop(number) in [contents.tokens.tolist() for contents in rows.contents]
        assert sorted(generation.row for generation in generations.values()) == list(range(len(rows.holders)))
        assert rows.decoding <= len(rows.holders)
        for number, tokens in running.items():
            row = generations[number].row
            assert row is not None
            assert rows.holders[row] is generations[number]
            assert held(rows, row) == tokens
        for row, contents in enumerate(rows.contents[len(rows.holders) :], start=len(rows.holders)):
            assert held(rows, row) == contents.tokens.tolist()  # of who left; empty at first


def test_the_longest_beginning_is_found_with_a_token_left_to_read() -> None:
    rows, common = empty(), list(range(40))
    for length in (20, 30, 25):
        rows.promote(admit(rows, [*common[:length], 99]))

    def shared(prompt: list[int]) -> Shared:
        return rows.shared(np.array(prompt))

    assert shared(common) == Shared(1, 30, False)
    assert shared(common[:28]) == Shared(1, 27, False)
    assert shared([*common[:25], 99]).length == 25  # of two rows
    assert shared(common[: LEAST + 1]).length == LEAST
    assert shared(common[:LEAST]) == Shared(None, 0, False)  # one of so few has to be read anyway
    assert shared([98, *common]) == Shared(None, 0, False)


def test_what_is_being_read_is_waited_for() -> None:
    rows, common = empty(), list(range(40))
    request = Request(prompt=[*common, 99], max_new_tokens=9)
    reading = Generation(request, None, None)
    rows.admit(reading, np.array(request.prompt), Shared(None, 0, False))
    read(rows, reading, common[:20])
    assert rows.shared(np.array(common)) == Shared(0, 20, True)
    assert rows.shared(np.array(common[:18])) == Shared(0, 17, False)
    assert rows.shared(np.array(common[1:])) == Shared(None, 0, False)


def test_other_weights_have_another_cache() -> None:
    rows = empty()
    prompt = list(range(30))
    rows.promote(admit(rows, prompt))
    rows.use_weights("first")
    assert rows.shared(np.array(prompt)).length == 29
    rows.use_weights("second")
    assert rows.shared(np.array(prompt)) == Shared(None, 0, False)
    rows.use_weights("first")  # entries made in between may be of either
    assert rows.shared(np.array(prompt)) == Shared(None, 0, False)


def test_all_that_is_known_of_a_row_moves_with_it() -> None:
    """Every list with one entry per row: a new one has to be thought of in `_swap`, or fails here."""
    rows = empty(3)
    first, second, third = (admit(rows, [number] * 20) for number in range(3))
    for generation in (first, second, third):
        rows.promote(generation)
    per_row = [name for name, value in vars(rows).items() if isinstance(value, list)]
    assert per_row == ["contents", "holders"]
    contents = list(rows.contents)
    rows.release(first)  # the third takes its row
    assert rows.holders == [third, second]
    assert [contents.index(each) for each in rows.contents] == [2, 1, 0]
    assert [field for field in Contents.__dataclass_fields__ if field not in ("tokens", "weights", "used")] == []


def test_the_row_used_longest_ago_is_given_away() -> None:
    """Three have left; the first of them was begun with again, so that the second makes room."""
    rows = empty(4)
    for number in range(3):
        rows.release(admit(rows, [number] * 20))
    rows.release(admit(rows, [0] * 30))
    admit(rows, [7] * 20)
    kept = [contents.tokens.tolist() for contents in rows.contents]
    assert sorted(kept) == [[0] * 20, [0] * 30, [2] * 20, [7] * 20]
