"""What summaries say that the reports do not, and by how much they are off."""

from typing import NamedTuple

from dsv2.accounting.account import account
from dsv2.accounting.paper_tables import PAPER_TABLES, PaperTable
from dsv2.composition import compose
from dsv2.config import structure
from dsv2.models.transformer import Transformer


class Quotation(NamedTuple):
    """A figure as it is often quoted, beside what the report says."""

    said: str
    quoted: float
    right: float
    unit: str
    why: str

    @property
    def off(self) -> float:
        """Relative error of the quotation."""
        return self.quoted / self.right - 1


def quotations() -> tuple[Quotation, ...]:
    """Return the usual wrong quotations of the DeepSeek-V2 report, with what is right computed from its own numbers."""
    table_8, table_9 = PAPER_TABLES["v2_table_8"], PAPER_TABLES["v2_table_9"]
    mha, mla = (table_9.value("KV cache per token (elements)", arm) for arm in ("small_mha", "small_mla"))
    narrow = _billions("model.ffn.expert_dim=1408")
    of_pair = f"{mla}K and {mha}K are elements of the small pair of Table 9; 93.3% is V2 at 6 bits against 67B at 16"
    return (
        Quotation(
            "width of an expert of V2", 1408, 1536, "", f"1408 is V2-Lite's; V2 would have {narrow:.0f}B parameters"
        ),
        Quotation(f"cache saved, {mla} instead of {mha}", 93.3, 100 * (1 - mla / mha), "%", of_pair),
        Quotation("cache of the small MLA", mla, 2 * mla, "KB", f"{mla}K are elements, of two bytes each at 16 bits"),
        _difference("MMLU that GQA-8 costs at 7B", 3.4, table_8, "gqa", "mha"),
        _difference("MMLU that MLA gains on MHA, small", 2.0, table_9, "small_mha", "small_mla"),
        _difference("MMLU that MLA gains on MHA, large", 2.0, table_9, "large_mha", "large_mla"),
    )


def _difference(said: str, quoted: float, table: PaperTable, lower: str, higher: str) -> Quotation:
    low, high = table.value("MMLU", lower), table.value("MMLU", higher)
    return Quotation(said, quoted, high - low, " points", f"{low} and {high} in {table.source}")


def _billions(*overrides: str) -> float:
    """Return the parameters of V2 with some overrides, in billions."""
    model = structure(compose(["model=v2", *overrides])["model"], Transformer.Config, "model")
    return account(model).total_params / 1e9
