"""`account --published`: every figure in the table and in the JSON, and what is often quoted wrongly."""

import json

import pytest

from dsv2.__main__ import main
from dsv2.accounting.derived import derived
from dsv2.accounting.published import PUBLISHED
from dsv2.accounting.quotations import quotations


def test_the_tables_have_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "--published"]) == 0
    printed = capsys.readouterr().out
    figures, _, wrong = printed.partition("Often quoted, and wrong")
    for row in derived():
        assert row.name in figures
        assert f"{row.ours:.4g}{row.unit}" in figures
    for quotation in quotations():
        assert quotation.said in wrong
    assert figures.count("not claimed") == len(derived()) + sum(figure.tolerance is None for figure in PUBLISHED)
    assert "5.76" in figures
    assert "217B" in wrong


def test_the_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "--published", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(PUBLISHED) + len(derived()) + len(quotations())
    by_name = {row["name"]: row for row in rows if "name" in row}
    ratio = by_name["V2, of 67B [V2 3.2.3]"]
    assert (ratio["value"], ratio["agrees"]) == (5.76, None)
    assert ratio["ours"] == pytest.approx(5.76 * (1 + ratio["difference"]))
    said = [row for row in rows if row["what"] == "quotation"]
    assert {row["said"] for row in said} == {quotation.said for quotation in quotations()}
