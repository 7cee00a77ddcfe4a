"""The published tables are the papers', cell by cell, and fit the studies that repeat them."""

import pytest
import yaml

from dsv2.accounting.paper_tables import PAPER_TABLES, PaperTable
from dsv2.config import CONFIG_DIR

# Copied from the papers a second time, row by row, independently of the module.
PUBLISHED = {
    "v2_table_8": [
        ("", "mqa", "gqa", "mha"),
        ("parameters", "7.1B", "6.9B", "6.9B"),
        ("BBH", "33.2", "35.6", "37.0"),
        ("MMLU", "37.9", "41.2", "45.2"),
        ("C-Eval", "30.0", "37.7", "42.9"),
        ("CMMLU", "34.6", "38.4", "43.5"),
    ],
    "v2_table_9": [
        ("", "small_mha", "small_mla", "large_mha", "large_mla"),
        ("active parameters", "2.5B", "2.4B", "25.0B", "21.5B"),
        ("parameters", "15.8B", "15.7B", "250.8B", "247.4B"),
        ("KV cache per token (elements)", "110.6K", "15.6K", "860.2K", "34.6K"),
        ("BBH", "37.9", "39.0", "46.6", "50.7"),
        ("MMLU", "48.7", "50.0", "57.5", "59.0"),
        ("C-Eval", "51.6", "50.9", "57.9", "59.2"),
        ("CMMLU", "52.3", "53.4", "60.7", "62.5"),
    ],
    "moe_table_1": [
        ("", "dense", "hash", "switch", "top2", "deepseek_moe", "gshard_x1.5", "dense_x16"),
        ("Pile loss", "2.060", "1.932", "1.881", "1.867", "1.808", "1.808", "1.806"),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_cell_is_the_published_one(name: str) -> None:
    (_, *arms), *rows = PUBLISHED[name]
    table = PAPER_TABLES[name]
    assert list(table.columns) == arms
    assert table.rows == {quantity: dict(zip(arms, cells, strict=True)) for quantity, *cells in rows}


def test_there_is_no_other_table() -> None:
    assert PAPER_TABLES.keys() == PUBLISHED.keys()


def test_cache_elements_are_those_of_the_equations() -> None:
    """MHA caches 2 n_h d_h l elements per token, MLA (d_c + d_h^R) l: 16 or 56 heads of 128, 27 or 60 layers."""
    elements = {
        "small_mha": 2 * 16 * 128 * 27,
        "small_mla": (512 + 64) * 27,
        "large_mha": 2 * 56 * 128 * 60,
        "large_mla": (512 + 64) * 60,
    }
    cells = PAPER_TABLES["v2_table_9"].rows["KV cache per token (elements)"]
    assert cells == {arm: f"{count / 1000:.1f}K" for arm, count in elements.items()}


def test_differences_are_those_that_the_report_draws_conclusions_from() -> None:
    """GQA loses 4.0 points of MMLU against MHA at 7B; MLA gains 1.3 in the small pair and 1.5 in the large one."""
    dense, moe = PAPER_TABLES["v2_table_8"], PAPER_TABLES["v2_table_9"]
    gains = [
        dense.value("MMLU", "gqa") - dense.value("MMLU", "mha"),
        moe.value("MMLU", "small_mla") - moe.value("MMLU", "small_mha"),
        moe.value("MMLU", "large_mla") - moe.value("MMLU", "large_mha"),
    ]
    assert gains == pytest.approx([-4.0, 1.3, 1.5])
    cache = "KV cache per token (elements)"
    assert 1 - moe.value(cache, "small_mla") / moe.value(cache, "small_mha") == pytest.approx(0.859, abs=5e-4)


def test_a_cell_is_a_number_without_its_unit() -> None:
    assert PAPER_TABLES["v2_table_9"].value("parameters", "large_mla") == 247.4
    assert PAPER_TABLES["v2_table_9"].value("KV cache per token (elements)", "small_mha") == 110.6
    assert PAPER_TABLES["moe_table_1"].value("Pile loss", "dense") == 2.06
    tokens = PaperTable("", "", {"a": "A"}, {"tokens": {"a": "1.33T"}})
    assert tokens.value("tokens", "a") == 1.33
    with pytest.raises(KeyError):
        PAPER_TABLES["moe_table_1"].value("Pile loss", "mla")


def test_a_table_is_one_sentence() -> None:
    table = PAPER_TABLES["v2_table_8"]
    assert table.text(("MMLU", "parameters")) == (
        "DeepSeek-V2, Table 8 (7B dense models, 1.33T tokens), MQA / GQA-8 / MHA: "
        "parameters 7.1B / 6.9B / 6.9B, MMLU 37.9 / 41.2 / 45.2."
    )
    whole = table.text()
    assert all(f"{quantity} {' / '.join(row.values())}" in whole for quantity, row in table.rows.items())


def test_studies_that_repeat_a_table_have_its_columns_as_arms() -> None:
    named = {}
    for path in (CONFIG_DIR / "sweep").glob("*.yaml"):
        study = yaml.safe_load(path.read_text())
        if table := study.get("paper_table"):
            named[path.stem] = table
            assert PAPER_TABLES[table].columns.keys() <= study["arms"].keys(), path.stem
    assert named.items() >= {"attention_dense": "v2_table_8", "attention_moe": "v2_table_9"}.items()
    assert set(named.values()) == PAPER_TABLES.keys()
