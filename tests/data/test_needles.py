"""Needles: what is hidden where, that it is nowhere else, and that only the answer is scored."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsv2
from dsv2.config import ConfigError
from dsv2.data.needles import ANSWERS, FORMAT, SUBJECTS, Needle, Needles, find_haystack, hide, needles
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.data.store import Split
from dsv2.metrics import chance
from tests.references.haystacks import store

SHORTEST, LENGTH = 48, 64


def opened(seed: int = 0, length: int = LENGTH, shortest: int = SHORTEST) -> Needles:
    return Needles(
        store(), shortest=shortest, sequence_length=length, seed=seed, validation_tokens=20 * length, identity={}
    )


def starts(tokens: list[int], part: list[int]) -> list[int]:
    """Where `part` lies in `tokens`."""
    return [first for first in range(len(tokens)) if tokens[first : first + len(part)] == part]


def asked(source: Needles, batch: Batch) -> list[tuple[list[int], Needle, int]]:
    """Of each sequence, its tokens without padding, and the needle that lies in them, with its place."""
    sequences = []
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        end = max(index for index, target in enumerate(targets) if target != NOT_SCORED)
        tokens = [*inputs[: end + 1], targets[end]]
        ((needle, places),) = [
            (needle, places)
            for needle in source.needles
            if tokens[-len(needle.question + needle.answer_ids) :] == needle.question + needle.answer_ids
            and (places := starts(tokens, needle.sentence))
        ]
        assert len(places) == 1
        sequences.append((tokens, needle, places[0]))
    return sequences


def without_needle(tokens: list[int], needle: Needle, place: int) -> list[int]:
    """The haystack of a sequence."""
    text = tokens[: len(tokens) - len(needle.question + needle.answer_ids)]
    return text[:place] + text[place + len(needle.sentence) :]


sizes = st.integers(1, 6)


@given(haystack=st.lists(st.integers(0, 9), max_size=30), share=st.floats(0, 1), parts=st.tuples(sizes, sizes, sizes))
def test_a_needle_is_whole_at_its_place_and_apart_from_the_question(
    haystack: list[int], share: float, parts: tuple[int, int, int]
) -> None:
    sentence, question, answer = (list(range(base, base + n)) for base, n in zip((10, 20, 30), parts, strict=True))
    needle, place = Needle(0, "it", "x", sentence, question, answer), round(share * len(haystack))
    prompt = hide(needle, haystack, place)
    assert starts(prompt, sentence) == [place]
    assert starts(prompt, question) == [len(prompt) - len(question)]
    assert place + len(sentence) <= len(prompt) - len(question)
    assert without_needle([*prompt, *answer], needle, place) == haystack
    assert len(prompt) + len(answer) - 1 == len(haystack) + needle.length


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9), first=st.integers(0, 10**6))
def test_every_sequence_asks_for_what_it_hides(seed: int, first: int) -> None:
    source, tokenizer = opened(seed), store().tokenizer
    batch = source.train(first, 4)
    for row, (tokens, needle, place) in enumerate(asked(source, batch)):
        read, haystack = len(tokens) - 1, without_needle(tokens, needle, place)
        assert SHORTEST <= read <= LENGTH
        assert len(haystack) == read - needle.length
        assert not needle.occurs_in(tokenizer.decode(haystack))
        assert tokenizer.decode(needle.answer_ids) == f" {needle.answer}"
        assert starts(store().train.tokens.tolist(), haystack)
        targets = batch.targets[row].tolist()
        answer = range(read - len(needle.answer_ids), read)
        assert [targets[index] for index in answer] == needle.answer_ids
        assert {targets[index] for index in range(LENGTH) if index not in answer} <= {NOT_SCORED}
        assert set(batch.inputs[row, read + 1 :].tolist()) <= {tokenizer.end_id}


def test_needles_lengths_and_places_are_drawn_from_all() -> None:
    source = opened()
    drawn = asked(source, source.train(0, 1500))
    assert {needle.answer for _, needle, _ in drawn} == set(ANSWERS)
    assert {(needle.wording, needle.subject) for _, needle, _ in drawn} == {
        (wording, subject) for wording in range(3) for subject in SUBJECTS
    }
    assert {len(tokens) - 1 for tokens, _, _ in drawn} == set(range(SHORTEST, LENGTH + 1))
    last = [place == len(without_needle(tokens, needle, place)) for tokens, needle, place in drawn]
    assert 10 < sum(last) < 300
    assert 10 < sum(place == 0 for _, _, place in drawn) < 300


def test_batches_are_a_pure_function_of_seed_and_number() -> None:
    whole, part, other = opened().train(3, 30), opened().train(20, 5), opened(seed=1).train(3, 30)
    assert torch.equal(part.inputs, whole.inputs[17:22])
    assert torch.equal(part.targets, whole.targets[17:22])
    assert not torch.equal(other.inputs, whole.inputs)
    assert whole.inputs.dtype == whole.targets.dtype == torch.int64
    assert whole.domains is None


def test_validation_is_of_full_length_in_held_out_text_and_the_same_for_all_seeds() -> None:
    first, second = opened(seed=0), opened(seed=1)
    batch = first.validation()
    assert torch.equal(batch.inputs, second.validation().inputs)
    assert batch.inputs.shape == (20, LENGTH)
    for tokens, needle, place in asked(first, batch):
        assert len(tokens) == LENGTH + 1
        haystack = without_needle(tokens, needle, place)
        assert starts(store().val.tokens.tolist(), haystack)
        assert not starts(store().train.tokens.tolist(), haystack)
    for seed in range(3):
        assert not (opened(seed).train(0, 20).inputs == batch.inputs).all(1).any()


def test_a_haystack_without_the_needle_is_found_or_said_to_be_missing() -> None:
    tokenizer, rng = store().tokenizer, random.Random(0)
    needle = next(needle for needle in needles(tokenizer) if needle.answer == "amber")
    says = tokenizer.encode(" people " * 5 + " AMBER " + " people " * 5)
    split = Split(np.array(says), np.array([0]), np.array([0]))
    assert "AMBER" in tokenizer.decode(says)
    assert find_haystack(needle, split, 3, rng, tokenizer)
    assert find_haystack(needle, split, 0, rng, tokenizer) == []
    with pytest.raises(ValueError, match=rf"'amber' or 'the secret word' is in every {len(says)} tokens"):
        find_haystack(needle, split, len(says), rng, tokenizer)
    with pytest.raises(ValueError, match=rf"only {len(says)} tokens, and a needle needs {len(says) + 1} around it"):
        find_haystack(needle, split, len(says) + 1, rng, tokenizer)


def test_answers_are_different_words_and_none_is_within_another() -> None:
    assert chance("bench/needle") == chance("needle/accuracy") == 1 / len(ANSWERS)
    assert len(set(ANSWERS)) == len(ANSWERS)
    assert not [(word, other) for word in ANSWERS for other in ANSWERS if word != other and word in other]
    assert all(word.islower() and word.isalpha() for word in ANSWERS)
    assert not [(word, subject) for word in ANSWERS for subject in SUBJECTS if word in subject]


def test_sequences_without_room_are_refused() -> None:
    longest = max(needle.length for needle in opened().needles)
    assert opened(length=longest, shortest=longest).validation().inputs.shape[1] == longest
    with pytest.raises(ConfigError, match=rf"data\.shortest={longest - 1} is not valid: at least {longest}"):
        opened(shortest=longest - 1)
    with pytest.raises(ConfigError, match=r"trainer\.sequence_length=63 is not valid: at least data\.shortest=64"):
        opened(length=63, shortest=64)
    with pytest.raises(ConfigError, match=r"shortest=0 is not valid: positive"):
        Needles.Config(shortest=0)


def test_it_is_text_of_which_answers_alone_count() -> None:
    source = opened()
    assert source.whole_answers
    assert source.tokenizer is store().tokenizer
    assert source.train_tokens is source.token_bytes is None


def test_the_yaml_says_what_the_defaults_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run = dsv2.load(["data=needles"])
    assert run.data == Needles.Config()
    monkeypatch.setattr(Needles.Config, "content_hash", lambda _: "of the text")
    assert run.data.identity()["needles"] == str(FORMAT)
