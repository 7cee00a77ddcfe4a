"""Painted tokens: every one is there, with the label of its colour, and nothing of the text is markup."""

import html
import math
import re

import pytest

from dsv2.explore.html import DIFFERENCE, MODES, painted, token_table
from dsv2.explore.trace import dropped
from tests.references.traces import TEXT, of


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
