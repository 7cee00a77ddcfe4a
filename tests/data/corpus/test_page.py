"""The data card as a page."""

from dsv2.data.corpus.page import STEP_HEADER, markdown, share_rows, step_rows, table, tokens_table

COUNTS = {"total": {"documents": 1200, "tokens": 34000}, "english": {"documents": 1200, "tokens": 34000}}
SAMPLE = {"text": "a | b\n\nc", "domain": "english", "language": "hu", "probability": 0.987, "quality": "rule"}
CARD = {
    "sources": {"sotu": {"content": "f" * 64, "documents": 3, "num_bytes": 4000}},
    "filters": ["quality"],
    "steps": {
        "training": [{"step": step, "in": COUNTS, "out": COUNTS} for step in ("language", "quality", "mixture")],
        "held_out": [{"step": "language", "in": COUNTS, "out": COUNTS}],
    },
    "mixture": {"english": {"available": 9000, "tokens": 1000, "share": 0.25, "epochs": 1.5}},
    "duplicates": {"training": {"2": 7}, "held_out": {}},
    "samples": {"quality": [SAMPLE | {"score": 0.5, "words": 2.0}], "language": [], "contentious": []},
    "bytes_per_token": {"300": {"english": 1.237}},
}


def test_steps_that_were_not_applied_are_in_brackets() -> None:
    rows = step_rows(CARD, "training")
    assert [row[0] for row in rows] == ["(language)", "quality", "mixture"]
    assert rows[0][1:] == ["1,200", "1,200", "34,000", "34,000"]
    assert len(rows[0]) == len(STEP_HEADER)


def test_the_page_has_every_part() -> None:
    page = markdown(CARD)
    for line in (
        "| sotu | 3 | 4,000 | ffffffffffffffff |",
        "## Held-out documents",
        "| english | 9,000 | 1,000 | 25.0% | 1.50 |",
        "| training | 2 | 7 |",
        "| 300 | 1.24 |",
        "| english | rule | a \\| b c |",
    ):
        assert line in page.splitlines()
    assert "### language" not in page
    assert share_rows(CARD) == [["english", "9,000", "1,000", "25.0%", "1.50"]]


def test_tables_keep_their_cells_apart() -> None:
    assert table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
    assert tokens_table(CARD).startswith("| vocabulary | english |")
    assert "## Bytes per token" not in markdown(CARD | {"bytes_per_token": {}})
    assert "Nothing." in markdown(CARD | {"samples": {}})
