"""Traces against the model's own routing and against counts by hand; tokens that join to the text again."""

import math

import pytest
import torch
import torch.nn.functional as F

import dsv2
from dsv2.explore.trace import budget, dropped, loads, pairs
from tests.references.tolerances import FLOAT32, close
from tests.references.traces import SHAPE, TEXT, TOKENIZER, of


def test_it_is_the_model_s_own_routing_and_loss(traced):
    model = dsv2.load(SHAPE).model.build().eval()
    tokens = torch.tensor([TOKENIZER.encode(TEXT)])
    output = model(tokens)
    assert list(traced.routings) == [1, 2]  # layer 0 is dense
    for mine, theirs in zip(traced.routings.values(), output.routings, strict=True):
        assert torch.equal(mine.experts, theirs.experts)
        assert torch.equal(mine.gates, theirs.gates)
    assert torch.isnan(traced.losses[0])
    for place in range(1, tokens.shape[1]):  # each token from those before it alone
        logits = model(tokens[:, :place]).logits[0, -1]
        close(traced.losses[place], F.cross_entropy(logits, tokens[0, place]), FLOAT32)
    rest = len(TEXT.encode()) - len(traced.pieces[0].encode())
    assert traced.bits_per_byte == pytest.approx(float(traced.losses[1:].sum()) / math.log(2) / rest)


@pytest.mark.parametrize("capacity", [0.3, 1.0, 2.5])
def test_drops_are_those_of_the_model_in_training(capacity):
    """The first MoE layer sees the same input, so a model that drops while it trains says the same of it."""
    numbers = [f"model.ffn.dropping.{number}" for number in ("exempt_ratio=0.0", f"capacity_factor={capacity}")]
    model = dsv2.load([*SHAPE, "model/ffn/dropping=device", *numbers]).model.build().train()
    routing = model(torch.tensor([TOKENIZER.encode(TEXT)])).routings[0]
    over = dropped(of(TEXT), 1, capacity)
    assert torch.equal(over, routing.dropped[0])
    assert over.any() == (capacity < 2)


def test_tables_agree_with_loops(traced):
    room, table, load = budget(traced, 2, 0.5), pairs(traced, 2, 0.5), loads(traced, 2, 0.5)
    experts = traced.routings[2].experts[0].tolist()
    num_tokens = len(experts)
    assert room == int(0.5 * num_tokens * 3 / 4)
    expected = [(token, slot, e, e // 2) for token, mine in enumerate(experts) for slot, e in enumerate(mine)]
    assert list(table[["token", "slot", "expert", "device"]].itertuples(index=False, name=None)) == expected
    assert [int(n) for n in load["load"]] == [sum(mine.count(e) for mine in experts) for e in range(8)]
    kept = (load["load"] - load["dropped"]).groupby(load["device"]).sum()
    offered = load.groupby("device")["load"].sum()
    assert list(kept) == [min(room, n) for n in offered]
    for device, rows in table.groupby("device"):  # the lowest affinities go
        if rows["dropped"].any():
            assert rows[rows["dropped"]]["gate"].max() <= rows[~rows["dropped"]]["gate"].min(), device


@pytest.mark.parametrize("text", [TEXT, "数学 naïve 🙂🙂 café", " ", "a\tb\r\nc\u00a0\u200dd", "e\u0301"])
def test_the_pieces_join_to_the_text(text):
    ids = TOKENIZER.encode(text)
    pieces = TOKENIZER.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "".join(of(text).pieces) == text


def test_half_a_character_is_shown_as_such():
    ids = TOKENIZER.encode("学")
    assert TOKENIZER.pieces(ids) == ["", "", "学"]
    assert TOKENIZER.pieces(ids[:2]) == ["", "\ufffd"]
    assert TOKENIZER.pieces([]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("x y " * 40, r"the text has \d+ tokens, but .* at most 64 tokens"),
        ("ab\ud800", "character 3 of the text is a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_shown_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        of(text)
