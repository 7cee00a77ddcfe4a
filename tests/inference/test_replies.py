"""Replies to prompts: as alone, whatever else is asked, and how they end."""

import pytest
import torch

import dsv2
from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.replies import Reply, reply_to
from dsv2.inference.sampling import Sampling
from dsv2.models.transformer import Transformer

PROMPTS = [[5, 6], list(range(3, 43)), [9] * 17, [8]]
DRAWN = Sampling(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some words to make a few tokens of, and some more words"] * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = dsv2.load(
        ["model=tiny", f"model.vocab_size={tokenizer.vocab_size}", "data.vocab_size=280", "model.init_std=0.2"]
    )
    return config.model.build(seed=1).eval()


def replies(
    model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], **settings: object
) -> list[list[Reply]]:
    given = {"samples": 2, "sampling": DRAWN, "max_new_tokens": 8, "stop_ids": frozenset()} | settings
    return reply_to(model, tokenizer, prompts, **given)  # type: ignore[arg-type]


def test_pitfall_7_a_reply_is_the_same_alone_and_in_company(model: Transformer, tokenizer: Tokenizer) -> None:
    """Beside longer prompts, other ids, and rows whose place is reused (five of those that end early)."""
    stops = {"stop_ids": range(0, 280, 9)}
    together = replies(model, tokenizer, PROMPTS, **stops)
    for number, prompt in enumerate(PROMPTS):
        (alone,) = replies(model, tokenizer, [prompt], first=2 * number, **stops)
        assert [reply.tokens for reply in alone] == [reply.tokens for reply in together[number]]
        for one, other in zip(alone, together[number], strict=True):
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
    assert len({reply.finish for group in together for reply in group}) == 2


def test_samples_differ_and_the_number_chooses_them(model: Transformer, tokenizer: Tokenizer) -> None:
    (four,) = replies(model, tokenizer, PROMPTS[:1], samples=4)
    assert len({tuple(reply.tokens) for reply in four}) == 4
    (last,) = replies(model, tokenizer, PROMPTS[:1], samples=2, first=2)
    assert [reply.tokens for reply in last] == [reply.tokens for reply in four[2:]]


def test_log_probabilities_are_those_of_the_tokens_at_the_temperature(model: Transformer, tokenizer: Tokenizer) -> None:
    for temperature in (0.5, 1.0, 2.0):
        (group,) = replies(model, tokenizer, PROMPTS[1:2], sampling=Sampling(temperature=temperature, seed=1))
        for reply in group:
            ids = torch.tensor([[*PROMPTS[1], *reply.tokens]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(PROMPTS[1]) - 1 : -1]
            unused = torch.ones(logits.shape[-1], dtype=torch.bool)
            unused[torch.from_numpy(tokenizer.ids)] = False
            logs = (logits.masked_fill(unused, -torch.inf) / temperature).log_softmax(-1)
            expected = [logs[place, token].item() for place, token in enumerate(reply.tokens)]
            assert reply.log_probabilities == pytest.approx(expected, abs=2e-5)


def test_pitfall_8_capped_replies_keep_their_tokens_and_stopped_ones_their_stop(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    (free,) = replies(model, tokenizer, PROMPTS[:1], max_new_tokens=6)
    for reply in free:
        assert (reply.finish, reply.stopped, len(reply.tokens)) == ("length", False, 6)
        assert reply.text == tokenizer.decode(reply.tokens)
    stops = {free[0].tokens[2], free[1].tokens[4]}
    (stopped,) = replies(model, tokenizer, PROMPTS[:1], max_new_tokens=6, stop_ids=stops)
    for one, other in zip(stopped, free, strict=True):
        end = next(place for place, token in enumerate(other.tokens) if token in stops)
        assert one.tokens == other.tokens[: end + 1], "with the stop token, which is drawn and learned like others"
        assert len(one.log_probabilities) == end + 1
        assert (one.stopped, one.text) == (True, tokenizer.decode(other.tokens[:end]))
    at_the_end = {free[0].tokens[5]} - set(free[0].tokens[:5])
    if at_the_end:
        (last,) = replies(model, tokenizer, PROMPTS[:1], max_new_tokens=6, stop_ids=at_the_end)
        assert last[0].stopped, "a stop token in the last place is no cap"


def test_ends_are_counted_as_they_come(model: Transformer, tokenizer: Tokenizer) -> None:
    counted: list[int] = []
    replies(model, tokenizer, PROMPTS, seen=counted.append)
    assert counted == [1] * 8
