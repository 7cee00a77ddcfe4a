"""Published figures to compare the accounting with, each with its model.

[V2] arXiv 2405.04434, [MoE] arXiv 2401.06066, [LLM] arXiv 2401.02954. A figure without a tolerance is not claimed; its
note says why it cannot be computed.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from dsv2.accounting.account import Account, account
from dsv2.accounting.cost import implied_mfu, training_cost
from dsv2.accounting.paper_tables import PAPER_TABLES
from dsv2.composition import compose
from dsv2.config import structure
from dsv2.models.transformer import Transformer

TOLERANCE = 0.025
TWO_B, DENSE_67B = ("model=deepseek_moe_2b",), ("model=deepseek_67b",)
LARGE_MHA = ("model=v2", "model/attention=mha", "model.attention.num_heads=56")
LITE_MHA = ("model=v2_lite", "model/attention=mha")
MOE_145B = (
    "model=deepseek_moe_16b",
    "model.dim=4096",
    "model.num_layers=62",
    "model.shape.num_heads=32",
    "model.shape.num_experts=128",
    "model.shape.top_k=12",
    "model.shape.num_shared=4",
    "model.shape.expert_dim=1408",
    "model.shape.ffn_dim=22528",
)
LARGE_SHAPE = (
    "the shape of the large pair is unpublished: the cache fixes heads x width x layers, but any expert width could be "
    "chosen to fit the total; ours is that of DeepSeek-V2"
)
HOURS = "at 100% of an H800's peak, a lower bound; the published hours imply a utilisation of "
UNPUBLISHED = "number of layers unpublished, "
KILOBYTES = "the table counts elements: so many kB at 8 bits, twice that at 16"
LARGE_CACHE = "MHA of 56 heads, which its published cache fixes"
EMBEDDING = "without the input embedding, as Table 9 appears to count"


class PublishedFigure(NamedTuple):
    """One number of a paper, and the model that it describes."""

    name: str
    overrides: tuple[str, ...]
    what: str  # a key of WHAT
    value: float
    unit: str
    tolerance: float | None = TOLERANCE  # relative; None: not claimed
    note: str = ""
    context: int = 4096
    kv_bits: float = 16
    against: tuple[str, ...] = DENSE_67B  # the model, at 16 bits, of a saving or a ratio


def _params(
    name: str, overrides: tuple[str, ...], total: float, active: float | None = None, note: str = ""
) -> list[PublishedFigure]:
    values = {"total_params": total, "active_params": active}
    return [
        PublishedFigure(name, overrides, what, value, "B", note=note)
        for what, value in values.items()
        if value is not None
    ]


def _table_9(arm: str, overrides: tuple[str, ...]) -> list[PublishedFigure]:
    table = PAPER_TABLES["v2_table_9"]
    name, elements = f"{table.columns[arm]} [V2 Table 9]", table.value("KV cache per token (elements)", arm)
    total, active = table.value("parameters", arm), table.value("active parameters", arm)
    tolerance, note = (None, LARGE_SHAPE) if arm.startswith("large") else (TOLERANCE, "")
    active_note = note or EMBEDDING
    return [
        PublishedFigure(name, overrides, "kv_elements_per_token", elements, "K", 0.05 / elements),
        PublishedFigure(name, overrides, "total_params", total, "B", tolerance, note),
        PublishedFigure(name, overrides, "active_params_without_embedding", active, "B", tolerance, active_note),
    ]


def _table_8(arm: str, overrides: tuple[str, ...], note: str) -> list[PublishedFigure]:
    table = PAPER_TABLES["v2_table_8"]
    return _params(f"7B {table.columns[arm]} [V2 Table 8]", overrides, table.value("parameters", arm), note=note)


def _flops(name: str, overrides: tuple[str, ...], value: float, context: int = 4096) -> PublishedFigure:
    return PublishedFigure(name, overrides, "sequence_flops", value, "T", context=context)


SEVEN_B = ("model=deepseek_7b",)
GSHARD = ("model.ffn.num_experts=16", "model.ffn.top_k=2", "model.ffn.num_shared=0", "model.ffn.expert_dim=3408")
SAVED = "from FLOPs, at equal utilisation; V2's was lower, see the hours"
PUBLISHED: tuple[PublishedFigure, ...] = (
    *_params("DeepSeek-V2 [V2]", ("model=v2",), 236, 21),
    *_params("DeepSeek-V2-Lite [V2]", ("model=v2_lite",), 15.7),
    *_params("DeepSeekMoE 16B [MoE]", ("model=deepseek_moe_16b",), 16.4, 2.8),
    *_params("DeepSeekMoE 145B [MoE]", MOE_145B, 144.6, 22.2, "dense layer as wide as 16 experts, unpublished"),
    *_params("DeepSeekMoE 2B [MoE]", TWO_B, 2.0),
    PublishedFigure("DeepSeekMoE 2B [MoE]", TWO_B, "active_params", 0.3, "B", 0.05 / 0.3, "published to one digit"),
    *_params("DeepSeek 67B [LLM]", DENSE_67B, 67.4),
    *_params("DeepSeek 7B [LLM]", SEVEN_B, 6.9),
    *_table_9("small_mha", LITE_MHA),
    *_table_9("small_mla", ("model=v2_lite",)),
    *_table_9("large_mha", LARGE_MHA),
    *_table_9("large_mla", ("model=v2",)),
    *_table_8("mha", SEVEN_B, "30 layers"),
    *_table_8("gqa", (*SEVEN_B, "model/attention=gqa", "model.num_layers=34"),
              UNPUBLISHED + "34 is the only number that rounds to 6.9B"),
    *_table_8("mqa", (*SEVEN_B, "model/attention=mqa", "model.num_layers=37"),
              UNPUBLISHED + "37 is the only number that rounds to 7.1B"),
    PublishedFigure("V2 at 6 bits, cache saved against 67B at 16 [V2]", ("model=v2",), "kv_saved", 93.3, "%",
                    0.0005 / 0.933, kv_bits=6),
    PublishedFigure("small MLA, cache in KB [V2 Table 9]", ("model=v2_lite",), "kv_bytes_per_token", 15.6, "KB",
                    0.05 / 15.6, KILOBYTES, kv_bits=8),
    PublishedFigure("small MHA, cache in KB [V2 Table 9]", LITE_MHA, "kv_bytes_per_token", 110.6, "KB",
                    0.05 / 110.6, KILOBYTES, kv_bits=8),
    PublishedFigure("small MLA, of small MHA [V2 D.2]", ("model=v2_lite",), "kv_ratio", 14, "%", against=LITE_MHA),
    PublishedFigure("large MLA, of large MHA [V2 D.2]", ("model=v2",), "kv_ratio", 4, "%", note=LARGE_CACHE,
                    against=LARGE_MHA),
    PublishedFigure("MLA, of GQA with 1 group [V2 Table 1]", ("model=v2",), "kv_ratio", 2.25, "", 0.005 / 2.25,
                    "(512 + 64) / (2 x 128): a group caches a key and a value in each layer",
                    against=("model=v2", "model/attention=mqa")),
    _flops("DeepSeek 7B [MoE]", SEVEN_B, 183.5),
    _flops("LLaMA2 7B [MoE]", (*SEVEN_B, "model.num_layers=32", "model.vocab_size=32000"), 187.9),
    _flops("DeepSeekMoE 16B [MoE]", ("model=deepseek_moe_16b",), 74.4),
    _flops("Dense 0.2B [MoE Table 1]", (*TWO_B, "model/ffn=dense"), 2.9, 2048),
    _flops("GShard 2B [MoE Table 1]", (*TWO_B, *GSHARD), 4.3, 2048),
    _flops("DeepSeekMoE 2B [MoE Table 1]", TWO_B, 4.3, 2048),
    _flops("Dense x16 [MoE Table 1]", (*TWO_B, "model/ffn=dense", "model.ffn.width=54528"), 24.6, 2048),
    PublishedFigure("DeepSeek-V2 [V2 3.2.3]", ("model=v2",), "hours_at_peak", 172.8, "K GPU h", None, HOURS),
    PublishedFigure("DeepSeek 67B [V2 3.2.3]", DENSE_67B, "hours_at_peak", 300.6, "K GPU h", None, HOURS),
    PublishedFigure("V2, hours saved against 67B [V2 3.2.3]", ("model=v2",), "flops_saved", 42.5, "%", None, SAVED),
)  # fmt: skip


class Compared(NamedTuple):
    """A published figure with ours."""

    published: PublishedFigure
    ours: float  # in the published unit
    difference: float  # relative to the published value
    why: str

    @property
    def agrees(self) -> bool | None:
        """Whether the difference lies within the tolerance; None if nothing is claimed."""
        tolerance = self.published.tolerance
        return None if tolerance is None else abs(self.difference) <= tolerance


WHAT: dict[str, tuple[str, Callable[[Account, Account], float]]] = {  # label; our value, unscaled
    "total_params": ("parameters", lambda ours, _: ours.total_params),
    "active_params": ("active parameters", lambda ours, _: ours.active_params),
    "active_params_without_embedding": ("active parameters", lambda ours, _: ours.active_params_without_embedding),
    "kv_elements_per_token": ("cache elements per token", lambda ours, _: ours.kv_elements_per_token),
    "kv_saved": ("bytes saved", lambda ours, other: 1 - ours.kv_bytes_per_token / other.kv_bytes_per_token),
    "kv_bytes_per_token": ("cache bytes per token", lambda ours, _: ours.kv_bytes_per_token),
    "kv_ratio": ("cache, relative", lambda ours, other: ours.kv_bytes_per_token / other.kv_bytes_per_token),
    "sequence_flops": ("FLOPs per sequence", lambda ours, _: ours.flops_per_token * ours.context),
    "hours_at_peak": ("hours per trillion tokens",
                      lambda ours, _: training_cost(ours.flops_per_token, 1e12, 1).gpu_hours),
    "flops_saved": ("hours saved", lambda ours, other: 1 - ours.flops_per_token / other.flops_per_token),
}  # fmt: skip
UNITS = {"B": 1e9, "K": 1e3, "KB": 1e3, "T": 1e12, "%": 0.01, "K GPU h": 1e3, "": 1.0}


def compare(figure: PublishedFigure) -> Compared:
    """Compute a published figure from its model and compare the two."""
    result, other = _account(figure.overrides, figure.context, figure.kv_bits), _account(figure.against, 4096, 16)
    ours = WHAT[figure.what][1](result, other) / UNITS[figure.unit]
    why = figure.note
    if figure.what == "hours_at_peak":
        hours = figure.value * UNITS[figure.unit]
        why += f"{implied_mfu(result.flops_per_token, 1e12, hours):.1%}"
    return Compared(figure, ours, ours / figure.value - 1, why)


@cache
def _account(overrides: tuple[str, ...], context: int, kv_bits: float) -> Account:
    model = structure(compose(overrides)["model"], Transformer.Config, "model")
    return account(model, context=context, kv_bits=kv_bits)
