"""Tables of the papers as printed; a study that mirrors one names it, and its arms are the table's columns.

[V2] arXiv 2405.04434, [MoE] arXiv 2401.06066.
"""

from typing import NamedTuple


class PaperTable(NamedTuple):
    """A published table, its cells as printed."""

    source: str
    setting: str  # models and training tokens
    columns: dict[str, str]  # arm of our study -> name of the table's column
    rows: dict[str, dict[str, str]]  # quantity -> arm -> cell

    def value(self, quantity: str, arm: str) -> float:
        """Return a cell as a number, without its unit letter."""
        return float(self.rows[quantity][arm].rstrip("KBT"))

    def text(self, quantities: tuple[str, ...] | None = None) -> str:
        """Format all rows, or the given quantities, as one sentence; cells are in the order of the columns."""
        rows = {name: row for name, row in self.rows.items() if quantities is None or name in quantities}
        cells = ", ".join(f"{name} {' / '.join(row.values())}" for name, row in rows.items())
        return f"{self.source} ({self.setting}), {' / '.join(self.columns.values())}: {cells}."


def _rows(arms: str, cells: dict[str, str]) -> dict[str, dict[str, str]]:
    """Build rows from space-separated cells in the order of `arms`."""
    return {name: dict(zip(arms.split(), row.split(), strict=True)) for name, row in cells.items()}


PAPER_TABLES = {
    "v2_table_8": PaperTable(
        "DeepSeek-V2, Table 8",
        "7B dense models, 1.33T tokens",
        {"mqa": "MQA", "gqa": "GQA-8", "mha": "MHA"},
        _rows(
            "mqa gqa mha",
            {
                "parameters": "7.1B 6.9B 6.9B",
                "BBH": "33.2 35.6 37.0",
                "MMLU": "37.9 41.2 45.2",
                "C-Eval": "30.0 37.7 42.9",
                "CMMLU": "34.6 38.4 43.5",
            },
        ),
    ),
    "v2_table_9": PaperTable(
        "DeepSeek-V2, Table 9",
        "MoE models; small 1.33T tokens, large 420B",
        {"small_mha": "small MHA", "small_mla": "small MLA", "large_mha": "large MHA", "large_mla": "large MLA"},
        _rows(
            "small_mha small_mla large_mha large_mla",
            {
                "active parameters": "2.5B 2.4B 25.0B 21.5B",
                "parameters": "15.8B 15.7B 250.8B 247.4B",
                "KV cache per token (elements)": "110.6K 15.6K 860.2K 34.6K",
                "BBH": "37.9 39.0 46.6 50.7",
                "MMLU": "48.7 50.0 57.5 59.0",
                "C-Eval": "51.6 50.9 57.9 59.2",
                "CMMLU": "52.3 53.4 60.7 62.5",
            },
        ),
    ),
    "moe_table_1": PaperTable(
        "DeepSeekMoE, Tables 1 and 2",
        "2B parameters, 100B tokens",
        {
            "dense": "Dense",
            "hash": "Hash",
            "switch": "Switch",
            "top2": "GShard",
            "deepseek_moe": "DeepSeekMoE",
            "gshard_x1.5": "GShard x1.5",
            "dense_x16": "Dense x16",
        },
        _rows(
            "dense hash switch top2 deepseek_moe gshard_x1.5 dense_x16",
            {"Pile loss": "2.060 1.932 1.881 1.867 1.808 1.808 1.806"},
        ),
    ),
}
