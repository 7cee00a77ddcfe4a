"""Traces against the model's own routing and against counts by hand; tokens that join to the text again."""

import html
import math
import re

import pytest
import torch
import torch.nn.functional as F

import dsv2
from dsv2.data.tokenizer import Tokenizer
from dsv2.explore.compare import agree, rand_index, similarity_by_chance
from dsv2.explore.html import DIFFERENCE, MODES, painted, token_table
from dsv2.explore.trace import Trace, budget, dropped, loads, pairs, trace
from tests.references.tolerances import FLOAT32, close

TOKENIZER = Tokenizer.train(["the cat sat on the mat, and the hat of the cat was flat"] * 3, 300)
TEXT = "the cat <b>sat</b> on\n\nthe 数学 & mat"
SHAPE = [
    "data.vocab_size=300",
    "model.dim=16",
    "model.shape.num_experts=8",
    "model.shape.top_k=3",
    "model.shape.num_devices=4",
    "model.init_std=0.5",
]


def of(text: str, *, seed: int = 0, overrides: tuple[str, ...] = ()) -> Trace:
    model = dsv2.load([*SHAPE, *overrides]).model.build(seed=seed).eval()
    return trace(model, TOKENIZER, text, most_tokens=64, num_devices=model.config.ffn.num_devices)


@pytest.fixture(scope="module")
def traced() -> Trace:
    return of(TEXT)


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
    target = "_target_: dsv2.models.moe.dropping.Dropping.Config"
    dropping = f"model.ffn.dropping={{{target}, exempt_ratio: 0.0, capacity_factor: {capacity}}}"
    model = dsv2.load([*SHAPE, dropping]).model.build().train()
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
        ("", "there is no text"),
        ("x y " * 40, r"the text has \d+ tokens: the run was trained|the text has \d+ tokens; .* at most 64 tokens"),
        ("ab\ud800", "character 3 of the text is half of a surrogate pair"),
    ],
)
def test_a_text_that_cannot_be_shown_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        of(text)


@pytest.mark.parametrize("mode", [*MODES, *DIFFERENCE])
@pytest.mark.parametrize("devices", [1, 4])
def test_every_token_is_painted_and_nothing_of_the_text_is_markup(mode, devices):
    traced = of(TEXT, overrides=(f"model.shape.num_devices={devices}",))
    other = of(TEXT, seed=1, overrides=(f"model.shape.num_devices={devices}",))
    page = painted(traced, 1, 0.5, mode, reference=other)
    shown = re.findall(r"<b>(.*?)</b>", page, flags=re.S)
    assert "".join(html.unescape(piece) for piece in shown).replace("…", "") == TEXT.replace("\n", "↵")
    assert re.sub(r'<span class="token" style="background:#\w{6};color:#\w+" title="[^"<>]*">|</?[bi]>|</span>|<br>|'
                  r'</?div[^>]*>', "", page).count("<") == 0  # fmt: skip
    experts = traced.routings[1].experts[0, :, 0].tolist()
    if mode == "top expert":
        assert re.findall(r"<i>(.*?)</i>", page) == [str(expert) for expert in experts]
    if mode == "dropped":
        numbers = [int(label or 0) for label in re.findall(r"<i>(.*?)</i>", page)]
        assert numbers == dropped(traced, 1, 0.5).sum(-1).tolist()


def test_one_token_and_the_table_of_tokens(traced):
    one = of("t")
    assert len(one.pieces) == 1
    assert math.isnan(one.loss)
    assert math.isnan(one.bits_per_byte)
    assert all("<i>" in painted(one, 1, 1.0, mode, reference=one) for mode in [*MODES, *DIFFERENCE])
    table = token_table(traced, 1, 0.5)
    assert table.count("<tr>") == 1 + len(traced.pieces)
    assert table.count("<s>") == int(dropped(traced, 1, 0.5).sum()) > 0


def test_agreement_does_not_depend_on_the_experts_numbers(traced):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    routing = traced.routings[1]
    renamed = traced._replace(routings={1: routing._replace(experts=order[routing.experts])})
    found = agree(traced, renamed, 1, same_run=False)
    assert (found.profile, found.grouping) == (1.0, 1.0)
    assert found.same_top is found.overlap is None
    same = agree(traced, traced, 1, same_run=True)
    assert (same.same_top, same.overlap) == (1.0, 1.0)
    elsewhere = agree(traced, of(TEXT, seed=1), 1, same_run=False)
    assert elsewhere.profile < 1
    assert abs(elsewhere.grouping) < 0.5
    fewer = of(TEXT, overrides=("model.shape.num_experts=4",))
    assert agree(traced, fewer, 1, same_run=False).profile is None


def test_the_rand_index_by_hand_and_by_chance():
    one, other = torch.tensor([0, 0, 0, 1, 1, 1]).numpy(), torch.tensor([0, 0, 1, 1, 2, 2]).numpy()
    # pairs together in both: 1 + 1; in one: 6; in the other: 3; of 15: expected 1.2
    assert rand_index(one, other) == pytest.approx((2 - 1.2) / (4.5 - 1.2))
    generator = torch.Generator().manual_seed(0)
    drawn = [rand_index(*torch.randint(0, 5, (2, 50), generator=generator).numpy()) for _ in range(200)]
    assert abs(sum(drawn) / 200) < 0.01
    assert rand_index(one * 0, other * 0) == 1.0


def test_random_routers_look_alike_the_more_the_longer_the_text():
    short, long = (similarity_by_chance(tokens, 32, 6) for tokens in (20, 2000))
    assert 0.8 < short < long < 1
