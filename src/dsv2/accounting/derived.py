"""The report's figures on training hours and generation (3.2.3), derived from models of cost with stated assumptions.

DeepSeek-V2 against DeepSeek 67B, on H800s. `throughput` lists what is assumed of inference.
"""

from functools import cache
from typing import NamedTuple

from dsv2.accounting.account import account
from dsv2.accounting.cost import implied_mfu, training_cost
from dsv2.accounting.deployed import weight_bytes
from dsv2.accounting.throughput import Decoding, decoding, prefill_tokens_per_second
from dsv2.accounting.traffic import all_to_all
from dsv2.composition import compose
from dsv2.config import structure
from dsv2.models.transformer import Transformer

TOKENS = 1e12
HOURS_67B, HOURS_V2 = 300.6e3, 172.8e3  # published, per trillion tokens
LINKS = {"InfiniBand": 50e9, "NVLink": 160e9}  # bytes per second and GPU that an H800 reaches (arXiv 2412.19437, 3.2.2)
CONTEXT = 4096  # tokens
CONTEXTS = (2048, 4096, 8192, 16384)
RATIO, GENERATED, PROMPTED = 5.76, 50e3, 100e3  # published: V2 against 67B, and tokens per second of V2


class Derived(NamedTuple):
    """A published figure with ours, which a model of cost gives; none of them is claimed."""

    name: str
    what: str
    published: float
    ours: float
    unit: str
    why: str  # what is assumed

    @property
    def difference(self) -> float:
        return self.ours / self.published - 1


def hours(link: str | None = None) -> float:
    """Return V2's GPU hours per trillion tokens at the utilisation of 67B's published hours.

    With a link, the bytes of the all-to-all of all layers are added at its rate: each token once per device, at most M
    devices, and nothing overlaps with computation.
    """
    v2, dense = _model("v2"), _model("deepseek_67b")
    mfu = implied_mfu(account(dense).flops_per_token, TOKENS, HOURS_67B)
    computing = training_cost(account(v2).flops_per_token, TOKENS, mfu).gpu_hours
    traffic = all_to_all(v2)
    assert traffic is not None
    sent = traffic.bytes_by_device_limited * len(v2.moe_layers) * TOKENS
    return computing + (sent / LINKS[link] / 3600 if link is not None else 0.0)


def generation(context: int = CONTEXT) -> tuple[Decoding, Decoding]:
    """Return decoding steps of V2 (FP8, cache at 6 bits) and of 67B (bfloat16) on 8 H800s."""
    v2, dense = _model("v2"), _model("deepseek_67b")
    return (
        decoding(v2, weight_bytes=weight_bytes(v2)["fp8"], kv_bits=6, context=context),
        decoding(dense, weight_bytes=weight_bytes(dense)["bf16"], kv_bits=16, context=context),
    )


def ratio(context: int = CONTEXT) -> float:
    """Return the tokens per second of V2's generation relative to 67B's."""
    v2, dense = generation(context)
    return v2.tokens_per_second / dense.tokens_per_second


@cache
def _model(preset: str) -> Transformer.Config:
    model: Transformer.Config = structure(compose([f"model={preset}"])["model"], Transformer.Config, "model")
    return model


PER_TRILLION = "hours per trillion tokens, with communication"
SAVED = "hours saved, with communication"
PER_SECOND = "tokens per second on 8 H800s"


def derived() -> list[Derived]:
    """Return the report's figures of section 3.2.3 beside those that the models of cost give."""
    at_utilisation = "at the utilisation that 67B's hours imply"
    rows = [
        Derived("DeepSeek-V2, no communication [V2 3.2.3]", PER_TRILLION, HOURS_V2 / 1e3, hours() / 1e3, "K GPU h",
                at_utilisation),
    ]  # fmt: skip
    for link, rate in LINKS.items():
        sent = f"all-to-all at {rate / 1e9:.0f} GB/s, not overlapped: {(hours(link) - hours()) / 1e3:.1f}K hours"
        name = f"DeepSeek-V2, over {link} [V2 3.2.3]"
        rows.append(Derived(name, PER_TRILLION, HOURS_V2 / 1e3, hours(link) / 1e3, "K GPU h", sent))
    for link in LINKS:
        name, saved = f"V2 over {link}, against 67B [V2 3.2.3]", 100 * (1 - hours(link) / HOURS_67B)
        rest = "left out: what V2 has more of in pipeline bubbles, recomputation and imbalance"
        rows.append(Derived(name, SAVED, 42.5, saved, "%", rest))
    (v2, dense), prompts = generation(), prefill_tokens_per_second(_model("v2"), context=CONTEXT)
    fits = f"at {CONTEXT:,} tokens, {v2.batch:,} sequences fit, of 67B {dense.batch:,}; V2 is bound by arithmetic"
    others = ", ".join(f"{ratio(context):.2f} at {context:,}" for context in CONTEXTS if context != CONTEXT)
    return [
        *rows,
        Derived("DeepSeek-V2, generation [V2 3.2.3]", PER_SECOND, GENERATED / 1e3, v2.tokens_per_second / 1e3, "K",
                "an upper bound; published as above 50K"),
        Derived("DeepSeek-V2, prompts [V2 3.2.3]", PER_SECOND, PROMPTED / 1e3, prompts / 1e3, "K",
                "an upper bound; published as above 100K"),
        Derived("V2, of 67B [V2 3.2.3]", "generation, relative", RATIO, ratio(), "",
                f"{fits}, 67B by reading; {others}"),
    ]  # fmt: skip
