"""The engine: whatever shares it and however it is cut, a request gets what it gets alone; how requests end."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.data.tokenizer import END_ID, Tokenizer
from dsv2.inference.deployed import with_cache_of
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Generation, QueueFull, Request
from dsv2.inference.sampling import Sampling
from dsv2.models.transformer import Transformer
from tests.references.generation import ATTENTION, VOCAB, alone, prompts_of, small_model
from tests.references.tolerances import FLOAT32


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_model()


@pytest.fixture
def counted(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens, padding excepted, each pass of the model has read."""
    passes, hidden = list[int](), model.hidden

    def counting(tokens: Tensor, *, positions: Tensor | None = None, **arguments: Any) -> Any:
        passes.append(tokens.numel() if positions is None else int((positions >= 0).sum()))
        return hidden(tokens, positions=positions, **arguments)

    monkeypatch.setattr(model, "hidden", counting)
    return passes


def asked(prompt: list[int], new: int = 6, **settings: Any) -> Request:
    return Request(prompt=prompt, max_new_tokens=new, log_probabilities=True, **settings)


def served(engine: Engine, *requests: Request) -> list[Generation]:
    """Submit all and run until all have ended."""
    generations = [engine.submit(request) for request in requests]
    for _ in engine.run():
        pass
    assert all(generation.finish is not None for generation in generations)
    return generations


def as_alone(model: Transformer, generations: list[Generation]) -> None:
    for generation in generations:
        tokens, logs = alone(model, generation.request)
        assert generation.tokens == tokens
        assert [score.log_probability for score in generation.scores] == pytest.approx(logs, abs=FLOAT32)


# ---- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
def test_every_request_gets_what_it_gets_alone(attention: str) -> None:
    """Prompts around the borders of blocks of 16 and of chunks of 8; rows are reused, some requests wait."""
    model = small_model(*ATTENTION[attention])
    prompts = prompts_of(1, 31, 5, 16, 15, 33, 8, 17, 32)
    requests = [asked(prompt, 3 + index) for index, prompt in enumerate(prompts)]
    as_alone(model, served(Engine(model, num_rows=3, max_length=64, chunk=8), *requests))


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 100])
def test_the_cut_of_prompts_changes_nothing(model: Transformer, chunk: int) -> None:
    """Also the log-probabilities of the prompt's own tokens."""
    requests = [asked(prompt, 3, score_prompt=True) for prompt in prompts_of(33, 2, 17)]
    generations = served(Engine(model, num_rows=3, max_length=64, chunk=chunk), *requests)
    as_alone(model, generations)
    for generation in generations:
        prompt = torch.tensor(generation.request.prompt)
        logs = model(prompt[None]).logits[0, :-1].log_softmax(-1).gather(-1, prompt[1:, None])[:, 0]
        scores = [score.log_probability for score in generation.prompt_scores]
        assert scores == pytest.approx(logs.tolist(), abs=FLOAT32)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=1.3, top_k=5, seed=5),
        Sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.5, seed=2**64 - 1),
        Sampling(repetition_penalty=2.0),
    ],
)
def test_the_batch_around_a_request_does_not_change_its_tokens(model: Transformer, sampling: Sampling) -> None:
    prompt, *others = prompts_of(20, 40, 3, 18, 7)
    request = asked(prompt, 12, sampling=sampling)
    expected, _ = alone(model, request)
    around = [asked(other, 4 + 3 * place, sampling=Sampling(temperature=2.0)) for place, other in enumerate(others)]
    for rows, before in ((1, 0), (2, 2), (5, 4), (3, 1)):
        engine = Engine(model, num_rows=rows, max_length=64, chunk=16)
        generations = served(engine, *around[:before], request, *around[before:])
        assert generations[before].tokens == expected


def test_samples_of_a_prompt_differ_and_are_as_alone(model: Transformer) -> None:
    (prompt,) = prompts_of(30)
    requests = [asked(prompt, 8, sampling=Sampling(temperature=1.0), sample=sample) for sample in range(4)]
    generations = served(Engine(model, num_rows=3, max_length=64), *requests)
    as_alone(model, generations)
    assert len({tuple(generation.tokens) for generation in generations}) == 4


def test_a_row_is_as_new_for_the_next_request(model: Transformer) -> None:
    """One request has every restriction that there is; an unrestricted one takes its row, in the midst of others."""
    restricted = Sampling(temperature=0.5, top_k=2, top_p=0.5, min_p=0.5, repetition_penalty=9.0, seed=9)
    first, second, third, fourth = prompts_of(20, 5, 6, 25)
    stops = frozenset(range(0, VOCAB, 2))
    requests = [
        asked(first, 3, sampling=restricted, stop_ids=stops, sample=3, alternatives=2, score_prompt=True),
        asked(second, 20, sampling=Sampling(temperature=1.0)),
        asked(third, 20),
        asked(fourth, 20),
    ]
    as_alone(model, served(Engine(model, num_rows=3, max_length=64), *requests))


def test_a_token_that_is_no_number_stays_in_its_own_row(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed request leaves NaN in its row; the next one there has nothing of it."""
    engine = Engine(model, num_rows=1, max_length=64)
    broken = engine.submit(asked(prompts_of(40)[0]))
    with monkeypatch.context() as patch:
        patch.setitem(model._parameters, "embedding", model.embedding * torch.nan)
        with pytest.raises(ValueError, match="the model's logits are not numbers"):
            engine.step()
    engine.cancel(broken)
    as_alone(model, served(engine, asked(prompts_of(3, seed=1)[0])))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_everyone_gets_their_own(model: Transformer, seed: int) -> None:
    """Requests come, share beginnings, are cancelled and end at random; those that end are as alone."""
    draw = random.Random(seed)
    sizes = {"num_rows": draw.choice([2, 3, 5]), "chunk": draw.choice([4, 16, 64])}
    engine = Engine(model, **sizes, max_length=64, prompts_first=seed % 2 == 0)
    beginnings, generations = prompts_of(35, 17, 33), list[Generation]()
    for _ in range(45):
        if draw.random() < 0.35:
            start = draw.choice(beginnings)
            prompt = start[: draw.randint(1, len(start))] + prompts_of(draw.randint(1, 6), seed=draw.randint(0, 3))[0]
            sampling = Sampling(temperature=draw.choice([0.0, 1.0]), seed=draw.randint(0, 9))
            generations.append(engine.submit(asked(prompt, draw.randint(1, 12), sampling=sampling)))
        if generations and draw.random() < 0.1:
            engine.cancel(draw.choice(generations))
        engine.step()
        for row, generation in enumerate(engine.rows.holders):
            assert generation.row == row
    for _ in engine.run():
        pass
    assert len(generations) > 8
    as_alone(model, [generation for generation in generations if generation.finish != "cancelled"])


def test_a_model_in_training_mode_is_used_in_evaluation_mode() -> None:
    training = small_model("model/ffn/dropping=device", "model.ffn.dropping.capacity_factor=0.1").train()
    (generation,) = served(Engine(training, num_rows=1, max_length=64), asked(prompts_of(20)[0]))
    assert training.training
    as_alone(training.eval(), [generation])


@pytest.mark.parametrize(
    ("prompts_first", "passes"), [(True, [5, 1, 8, 8, 8, 8, 8, 2]), (False, [5, 1, 8, 1, 8, 1, 8, 1, 8, 1, 8, 2])]
)
def test_answers_wait_for_prompts_or_not(
    model: Transformer, counted: list[int], prompts_first: bool, passes: list[int]
) -> None:
    """A prompt of 40 that comes while another is answered, read 8 tokens at a time."""
    short, long = prompts_of(5, 40)
    engine = Engine(model, num_rows=2, max_length=64, chunk=8, prompts_first=prompts_first)
    engine.submit(asked(short, 9))
    engine.step()
    engine.submit(asked(long, 9))
    while engine.rows.decoding < 2:
        engine.step()
    assert counted == passes


# ---- shared beginnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [31, 32, 33])
def test_a_prompt_that_is_held_already_is_not_read_again(model: Transformer, counted: list[int], length: int) -> None:
    """Three times the same: tokens and log-probabilities are equal, the row's length is exact."""
    engine = Engine(model, num_rows=2, max_length=64)
    (prompt,) = prompts_of(length)
    for time in range(3):
        counted.clear()
        (generation,) = served(engine, asked(prompt, 4))
        as_alone(model, [generation]) if time == 0 else None
        assert counted[:4] == [length if time == 0 else 1, 1, 1, 1]
        assert int(engine.rows.cache.lengths[0]) == length + 3  # all but the last token, which nobody has read
    counted.clear()
    (scored,) = served(engine, asked(prompt, 4, score_prompt=True))
    assert counted[0] == length  # computed again
    as_alone(model, [scored])


def test_an_answer_can_be_gone_on_from(model: Transformer, counted: list[int]) -> None:
    engine = Engine(model, num_rows=2, max_length=64)
    (prompt,) = prompts_of(20)
    (generation,) = served(engine, asked(prompt, 9))
    counted.clear()
    (following,) = served(engine, asked([*prompt, *generation.tokens, 1, 2, 3], 2))
    assert counted[0] == 4  # the last token of the answer and three more
    as_alone(model, [following])


def test_an_equal_second_block_after_another_first_is_not_shared(model: Transformer, counted: list[int]) -> None:
    one, other, second = prompts_of(16, 16, 20)
    engine = Engine(model, num_rows=2, max_length=64)
    served(engine, asked([*one, *second], 2))
    counted.clear()
    as_alone(model, served(engine, asked([*other, *second], 2)))
    assert counted[0] == 36


def test_a_row_does_not_answer_to_what_it_held_before(model: Transformer, counted: list[int]) -> None:
    first, second = prompts_of(30, 30)
    engine = Engine(model, num_rows=1, max_length=64)
    served(engine, asked(first, 2), asked(second, 2))
    counted.clear()
    as_alone(model, served(engine, asked(first, 2)))
    assert counted[0] == 30


def test_the_beginning_used_longest_ago_makes_room(model: Transformer, counted: list[int]) -> None:
    """Of three conversations in turns, all stay with three rows; with two, the third takes the place of the first."""
    for rows, read in ((3, 1), (2, 30)):
        engine = Engine(model, num_rows=rows, max_length=64)
        first, *others = [asked(prompt, 2) for prompt in prompts_of(30, 30, 30)]
        for request in (first, *others):
            served(engine, request)
        counted.clear()
        as_alone(model, served(engine, first))
        assert counted[0] == read


def test_other_weights_share_nothing(counted: list[int]) -> None:
    """Changed in place, as between steps of an optimiser, or replaced."""
    model = small_model()
    engine = Engine(model, num_rows=1, max_length=64)
    request = asked(prompts_of(30)[0], 3)
    changes: list[Callable[[], Any]] = [
        lambda: torch.nn.init.normal_(model.layers[0].attention.w_dkv, std=0.5),
        lambda: setattr(model.layers[0].attention, "w_kr", torch.nn.Parameter(model.layers[0].attention.w_kr * -2)),
        lambda: model.load_state_dict(small_model().state_dict()),
    ]
    answers = [served(engine, request)[0].tokens]
    for change in changes:
        change()
        generations = served(engine, request)
        as_alone(model, generations)
        answers.append(generations[0].tokens)
    assert answers[0] != answers[1]
    assert answers[3] == answers[0]


def test_other_bits_and_another_rope_share_nothing(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights and prompt, in models that are deployed or extended in another way: each reads all of it."""
    read, hidden, (prompt,) = list[int](), Transformer.hidden, prompts_of(30)

    def counting(each: Transformer, tokens: Tensor, **arguments: Any) -> Any:
        read.append(tokens.numel())
        return hidden(each, tokens, **arguments)

    monkeypatch.setattr(Transformer, "hidden", counting)
    yarn = ["model/rope=yarn", "model.rope.yarn.original_length=16", "trainer.sequence_length=64"]
    stretched = [small_model(*yarn, f"model.rope.yarn.factor={factor}") for factor in (4, 8)]
    for each in (model, *stretched, *(with_cache_of(bits).of(model) for bits in (4, 2))):
        each.load_state_dict(model.state_dict())
        read.clear()
        (generation,) = served(Engine(each, num_rows=1, max_length=64), asked(prompt, 6))
        assert read == [30, 1, 1, 1, 1, 1]
        as_alone(each, [generation])


def test_a_common_beginning_is_read_once(model: Transformer, counted: list[int]) -> None:
    """Of requests that come together: the others wait until the first has read it, in chunks, and copy it."""
    start, *ends = prompts_of(40, 3, 4, 5)
    requests = [asked([*start, *end], 1) for end in ends]
    generations = served(Engine(model, num_rows=4, max_length=64, chunk=16), *requests)
    assert sum(counted) == 40 + 3 + 4 + 5
    as_alone(model, generations)
    counted.clear()
    samples = [asked(start, 1, sample=sample) for sample in range(5)]
    generations = served(Engine(model, num_rows=8, max_length=64, chunk=16), *samples)
    assert sum(counted) == 40 + 4
    as_alone(model, generations)


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_answers_end_for_their_own_reason(model: Transformer) -> None:
    (prompt,) = prompts_of(10)
    tokens, _ = alone(model, asked(prompt, 20))
    stop = next(token for token in tokens if token != tokens[0])
    place = tokens.index(stop)
    several = frozenset({stop, tokens[-1], VOCAB - 1} - {tokens[0]})
    length, stopped, at_once, capacity = served(
        Engine(model, num_rows=2, max_length=25),
        asked(prompt, place),
        asked(prompt, 15, stop_ids=several),
        asked(prompt, 15, stop_ids=frozenset(tokens)),
        asked(prompt, 20),
    )
    assert (length.finish, length.tokens) == ("length", tokens[:place])  # capped: nothing is added
    assert (stopped.finish, stopped.tokens) == ("stop", tokens[: place + 1])  # with the id that stopped it
    assert (at_once.finish, at_once.tokens) == ("stop", tokens[:1])
    assert (capacity.finish, capacity.tokens) == ("capacity", tokens[:15])


def test_the_last_token_allowed_may_be_a_stop_id(model: Transformer) -> None:
    (prompt,) = prompts_of(10)
    tokens, _ = alone(model, asked(prompt, 1))
    (generation,) = served(Engine(model, num_rows=1, max_length=11), asked(prompt, 1, stop_ids=frozenset(tokens)))
    assert generation.finish == "stop"


def test_what_can_never_fit_is_refused_at_once_and_the_next_is_served(model: Transformer) -> None:
    """A row of 8 blocks of 16: a prompt of 200, of 128, and one of 100 that wants 100 more, which gets 28."""
    engine = Engine(model, num_rows=2, max_length=128, chunk=32)
    long, exact, half, short = prompts_of(200, 128, 100, 5)
    for prompt in (long, exact):
        with pytest.raises(ConfigError, match=f"prompt='{len(prompt)} tokens' is not valid: at most 127 tokens"):
            engine.submit(asked(prompt))
    generations = [engine.submit(asked(half, 100)), engine.submit(asked(short, 3))]
    steps = 0
    while engine.busy:
        left = sum(len(each.request.prompt) - each.prefilled for each in generations)
        assert engine.step() or left > sum(len(each.request.prompt) - each.prefilled for each in generations)
        steps += 1
    assert steps < 40
    assert [generation.finish for generation in generations] == ["capacity", "length"]
    assert len(generations[0].tokens) == 28
    as_alone(model, generations[1:])
    assert generations[0].tokens == alone(model, asked(half, 28))[0]


def test_a_prompt_can_be_scored_alone(model: Transformer) -> None:
    """No token is chosen; a prompt that fills its row fits. Without scores there is nothing to do."""
    engine = Engine(model, num_rows=1, max_length=20, chunk=8)
    (prompt,) = prompts_of(20)
    scored, nothing = (engine.submit(asked(prompt, 0, score_prompt=score)) for score in (True, False))
    assert nothing.finish == "length"
    updates = [*engine.run()]
    assert [update[:3] for update in updates] == [(scored, "", "length")]
    assert (scored.finish, scored.tokens, len(scored.prompt_scores)) == ("length", [], 19)
    assert engine.rows.holders == []


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("samples", [1, 2])
def test_who_leaves_frees_the_row_at_once(model: Transformer, after: int, samples: int) -> None:
    """Before the first step, before the first token, after the third; also after 100 requests; others go on."""
    engine = Engine(model, num_rows=2, max_length=64, chunk=8)
    if (after, samples) == (3, 2):
        served(engine, *(asked(prompt, 1) for prompt in prompts_of(*[5] * 100)))
    left, stays = prompts_of(20, 9)
    generations = [engine.submit(asked(left, 30, sample=sample)) for sample in range(samples)]
    other = engine.submit(asked(stays, 12))
    for _ in range(after):
        engine.step()
    while after == 3 and len(generations[0].tokens) < 3:
        engine.step()
    for generation in generations:
        engine.cancel(generation)
        engine.cancel(generation)  # twice is once
    assert [generation.finish for generation in generations] == ["cancelled"] * samples
    assert {*engine.waiting, *engine.rows.holders} == {other}
    had = [list(generation.tokens) for generation in generations]
    for _ in engine.run():
        pass
    as_alone(model, [other])
    assert [generation.tokens for generation in generations] == had
    assert not engine.busy
    assert engine.rows.decoding == 0


def test_an_answer_that_has_ended_cannot_be_cancelled(model: Transformer) -> None:
    engine = Engine(model, num_rows=1, max_length=64)
    (generation,) = served(engine, asked(prompts_of(5)[0], 2))
    engine.cancel(generation)
    assert generation.finish == "length"


def test_no_more_wait_than_may(model: Transformer) -> None:
    """Besides those for which there are rows: with one row, one and two more; with none to wait, one."""
    requests = [asked(prompt, 3) for prompt in prompts_of(5, 6, 7, 8)]
    for most in (2, 0):
        engine = Engine(model, num_rows=1, max_length=64, max_waiting=most)
        accepted = [engine.submit(request) for request in requests[: most + 1]]
        for _ in range(2):  # before a step and after it
            with pytest.raises(QueueFull, match=f"{most} requests are waiting, as many as may; try again later"):
                engine.submit(requests[3])
            engine.step()
        engine.cancel(accepted[0])
        engine.submit(requests[3])
        for _ in engine.run():
            pass


# ---- text, ids and scores --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["ban ben lor"] * 9, vocab_size=260)


@pytest.fixture(scope="module")
def writer() -> Transformer:
    return small_model(vocab_size=300)


def test_text_comes_in_pieces_and_ends_before_a_stop(writer: Transformer, tokenizer: Tokenizer) -> None:
    """A stop string that begins within one token and ends in another, or a stop id, whose text is no part of it."""

    def texts(**settings: Any) -> Iterator[tuple[list[str], Generation]]:
        engine = Engine(writer, num_rows=2, max_length=64, tokenizer=tokenizer, ids=tokenizer.ids)
        generations = [engine.submit(asked([*b"abc"], 24, **settings)) for _ in range(2)]
        pieces = {id(generation): list[str]() for generation in generations}
        for update in engine.run():
            pieces[id(update.generation)].append(update.text)
        return ((pieces[id(generation)], generation) for generation in generations)

    for pieces, generation in texts():
        assert "".join(pieces) == generation.text == tokenizer.decode(generation.tokens)
        whole = generation
    stop = whole.text[5:8]
    for pieces, generation in texts(stops=("nowhere", stop)):
        assert "".join(pieces) == generation.text == whole.text[: whole.text.index(stop)]
        assert generation.finish == "stop"
        assert generation.tokens == whole.tokens[: len(generation.tokens)]
    last = whole.tokens[7]
    for pieces, generation in texts(stop_ids=frozenset({last, END_ID})):
        place = whole.tokens.index(last)
        assert "".join(pieces) == generation.text == tokenizer.decode(whole.tokens[:place])
        assert generation.tokens == whole.tokens[: place + 1]


def test_only_the_given_ids_are_generated(writer: Transformer) -> None:
    """300 logits, of which 40 may be chosen; a tokenizer may have ids beyond the model's."""
    ids = [*range(7, 47), 999]
    requests = [asked([9, 9], 20, sampling=Sampling(temperature=5.0), sample=sample) for sample in range(3)]
    generations = served(Engine(writer, num_rows=2, max_length=64, ids=ids), *requests)
    assert {token for generation in generations for token in generation.tokens} <= set(ids)
    assert all(score.log_probability > -60 for generation in generations for score in generation.scores)


def test_alternatives_are_the_most_likely_tokens(model: Transformer) -> None:
    (prompt,) = prompts_of(5)
    request = asked(prompt, 4, alternatives=3, score_prompt=True)
    (generation, plain) = served(Engine(model, num_rows=2, max_length=64), request, replace(request, alternatives=0))
    assert plain.scores[0].alternatives == ()
    whole = torch.tensor([[*prompt, *generation.tokens]])
    with torch.no_grad():
        logs = model(whole).logits[0].log_softmax(-1)
    scores = [*generation.prompt_scores, *generation.scores]
    assert len(scores) == 4 + 4
    for place, score in enumerate(scores):
        values, ids = logs[place].topk(3)
        assert [token for token, _ in score.alternatives] == ids.tolist()
        assert [log for _, log in score.alternatives] == pytest.approx(values.tolist(), abs=FLOAT32)
        assert score.log_probability == pytest.approx(float(logs[place, whole[0, place + 1]]), abs=FLOAT32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": [3, VOCAB]}, f"prompt='ids from 3 to {VOCAB}' is not valid: ids from 0 to {VOCAB - 1}"),
        ({"prompt": [-1]}, "prompt='ids from -1 to -1'"),
        ({"stops": ("a",)}, "none, since there is no tokenizer"),
    ],
)
def test_requests_out_of_range_are_named(model: Transformer, settings: dict[str, Any], message: str) -> None:
    engine = Engine(model, num_rows=1, max_length=64)
    with pytest.raises(ConfigError, match=message):
        engine.submit(asked(**{"prompt": [1]} | settings))
    assert not engine.busy


def test_no_row_is_longer_than_the_model_has_positions() -> None:
    """Of 16 positions extended by 4: a row of 64, filled to its end, and none of 65."""
    sizes = ["model.rope.yarn.original_length=16", "model.rope.yarn.factor=4", "trainer.sequence_length=64"]
    model = small_model("model/attention=mla", "model/rope=yarn", *sizes)
    (generation,) = served(Engine(model, num_rows=1, max_length=64), asked(prompts_of(60)[0], 9))
    assert (generation.finish, len(generation.tokens)) == ("capacity", 4)
    with pytest.raises(ConfigError, match="max_length=65 is not valid: at most 64, the positions"):
        Engine(model, num_rows=1, max_length=65)


@pytest.mark.parametrize("size", [2**50, 2**62, 10**30])
def test_an_engine_beyond_the_memory_is_refused(model: Transformer, size: int) -> None:
    """Whichever way torch fails: by what the system lacks, or by a number that is none of its own."""
    with pytest.raises(
        ConfigError, match=f"max_length={size} is not valid: less, since 3 x {size:,} tokens do not fit"
    ):
        Engine(model, num_rows=3, max_length=size)


def test_an_engine_of_no_size_is_refused(model: Transformer) -> None:
    for name in ("num_rows", "max_length", "chunk"):
        with pytest.raises(ConfigError, match=f"{name}=0 is not valid: 1 or more"):
            Engine(model, **{"num_rows": 1, "max_length": 1, name: 0})
