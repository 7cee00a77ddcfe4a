"""`python docs/make_results.py`: write every number that a study gave into the pages, from the files in `results/`.

A block stands between `<!-- results: NAME -->` and `<!-- end -->`, and whatever is between them is replaced. Nothing is
trained. With `--check`, nothing is written, and the exit status is 1 if a page would change.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import results_balance
import results_context
import results_effects
from results_stored import LOADS, LOSS, RESULTS, Stored, orders_kept

from dsv2.metrics import quantity
from dsv2.statistics.paired import t_interval
from dsv2.statistics.verdicts import difference_text
from dsv2.study.files import read

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/cluster.md",
    "docs/context.md",
    "docs/equations.md",
    "docs/generation.md",
    "docs/report.md",
    "docs/quantisation.md",
    "results/README.md",
)
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


# ---- the demo --------------------------------------------------------------------------------------------------------

VARIANTS = {
    "none": "no balance loss",
    "expert": "expert-level loss",
    "device": "device-level loss",
    "communication": "communication loss",
    "paper": "all three",
    "paper_limited": "all three, at most 3 devices per token, token dropping",
}
SHOWN = {LOSS: ".3f"} | dict.fromkeys(LOADS[:3], ".2f") | {LOADS[3]: ".1%"}  # metric -> format


def demo() -> str:
    """The results of `make demo`, the lowest imbalances in bold, and what they say of the losses."""
    stored = Stored("balance_losses", "smoke")
    lowest = {metric: stored.table[f"{metric} mean"].idxmin() for metric in SHOWN if metric != LOSS}
    rows = []
    for arm, variant in VARIANTS.items():
        cells = {metric: stored.spread(arm, metric, form) for metric, form in SHOWN.items()}
        bold = [f"**{cell}**" if lowest.get(metric) == arm else cell for metric, cell in cells.items()]
        rows.append([f"{variant} (`{arm}`)", *bold])
    header = ["variant", *(quantity(metric).label for metric in SHOWN)]
    header[-1] = quantity(LOADS[3]).name
    others = [arm for arm in VARIANTS if arm != "none"]
    below = {
        metric: sum(stored.mean(arm, metric) < stored.mean("none", metric) for arm in others) for metric in LOADS[:4]
    }
    lower = "; ".join(f"{quantity(metric).name} in {count} of {len(others)}" for metric, count in below.items())
    text = (
        f"Mean ± standard deviation over {stored.seeds} seeds, the lowest imbalances in bold. Variants with a lower "
        f"mean than without a loss: {lower}. Verdicts on the contrasts, minus `none`, with intervals that hold "
        f"together: {stored.verdicts()}."
    )
    return f"{table(header, rows)}\n\n{text}"


# ---- what the studies show -------------------------------------------------------------------------------------------


def effects() -> str:
    """The table of results: what the papers report, and what the studies show at tiny."""
    rows = [row for part in (_balance, _attention, _baselines, _identical) for row in part()]
    return table(["effect", "published", "here"], rows)


def _balance() -> list[list[str]]:
    balance, metric, overflow = Stored("balance_losses"), LOADS[0], LOADS[3]
    ends = [f"{balance.mean(arm, metric):.2f}" for arm in ("none", "paper")]
    over = [f"{balance.mean(arm, overflow):.1%}" for arm in ("none", "paper")]
    loads = (
        f"with all three, expert violation from {' to '.join(ends)}, overflow at capacity 1.0 from {' to '.join(over)} "
        f"({balance.seeds} seeds)"
    )
    return [
        ["balance losses even out the load", "V2: used, not ablated", loads],
        [
            "... at no cost in loss",
            "V2: small coefficients",
            f"{balance.difference('paper', 'none')} nats for all three",
        ],
    ]


def _attention() -> list[list[str]]:
    stored = Stored("attention_moe")
    by_size = {
        size: f"{stored.difference(f'{size}_mla', f'{size}_mha')} nats at equal parameters with a quarter of the cache"
        for size in ("small", "large")
    }
    maths = stored.difference("small_mla", "small_mha", "val/bpb_maths")
    sizes = ", ".join(f"{name} {stored.difference(f'large_{arm}', f'small_{arm}')}" for arm, name in KINDS.items())
    controls = " and ".join(stored.difference(f"small_mha_{arm}", "small_mha") for arm in ("partial_rope", "key_norm"))
    tasks = ", ".join(
        f"{quantity(metric).name} {stored.difference('small_mla', 'small_mha', metric)} and "
        f"{stored.difference('large_mla', 'large_mha', metric)}"
        for metric in ("bench/cloze", "bench/copying", "bench/arithmetic")
    )
    learned = ", ".join(f"{arm} {stored.learned(arm)}" for arm in ("small_mha", "small_mla", "large_mha", "large_mla"))
    earlier = stored.difference("small_mha_key_norm", "small_mha", "recall/accuracy_in_training")
    return [
        [
            "MLA minus MHA, small MoE",
            "V2, Table 9: better on most benchmarks",
            f"{by_size['small']} ({stored.seeds} seeds); on generated mathematics {maths} bits per byte",
        ],
        [
            "MLA minus MHA, larger MoE (2.0M parameters)",
            "V2, Table 9: better by more",
            f"{by_size['large']}; the larger model minus the smaller one at equal tokens: {sizes}",
        ],
        [
            "MHA with MLA's partial RoPE, and with a norm on its keys as well, minus MHA",
            "not reported",
            f"{controls} nats",
        ],
        [
            "MLA minus MHA on tasks, small and larger MoE",
            "V2, Table 9: better on 3 or 4 of 4 benchmarks",
            f"share correct: {tasks}",
        ],
        [
            "MLA and MHA in recalling 8 key-value pairs",
            "not reported",
            f"seeds that learned it within 1,000 steps: {learned}; with a norm on its keys, MHA's mean accuracy over "
            f"training changes by {earlier}, a measure chosen after seeing runs",
        ],
    ]


KINDS = {"mha": "MHA", "mla": "MLA"}
OTHERS = {"top2": "GShard without dropping", "gshard": "GShard", "switch": "Switch", "hash": "Hash"}


def _baselines() -> list[list[str]]:
    stored = Stored("moe_baselines")
    others = {arm: label for arm, label in OTHERS.items() if arm in stored.table.index}
    differences = ", ".join(f"{label} {stored.difference('deepseek_moe', arm)}" for arm, label in others.items())
    learned = ", ".join(f"{arm} {stored.learned(arm)}" for arm in stored.table.index)
    more = " and ".join(stored.difference(arm, "deepseek_moe") for arm in ("gshard_x1.5", "dense_x16"))
    dense = stored.difference("dense_x16", "dense")
    return [
        [
            "DeepSeekMoE minus a dense model whose active parameters are equal within 3%",
            "DeepSeekMoE, Table 1: better",
            f"{stored.difference('deepseek_moe', 'dense_active')} nats ({stored.seeds} seeds, 1M tokens)",
        ],
        ["... minus GShard, Switch, Hash", "DeepSeekMoE, Table 1: better", f"{differences} nats"],
        ["... in recalling 8 key-value pairs", "not reported", f"seeds that learned it: {learned}"],
        [
            "more capacity: GShard with experts 1.5 times as wide, and dense with DeepSeekMoE's total parameters "
            "(x16), minus DeepSeekMoE",
            "DeepSeekMoE, Table 1: equal to DeepSeekMoE",
            f"{more} nats; dense x16 minus the dense model with one sixteenth of its FFN: {dense}",
        ],
    ]


def _identical() -> list[list[str]]:
    section = Stored("aa").report.partition("## False verdicts")[2].partition("\n## ")[0]
    rates = [float(share) for share in re.findall(r"^\|[^|]*\| (?:\d+ \| )?([\d.]+)% \|", section, flags=re.M)]
    trials = re.search(r"(\d+) trials", section)
    if not rates or trials is None:
        raise ValueError("results/aa/tiny/report.md: no rates of false verdicts")
    said = f"{min(rates)}% to {max(rates)}%, depending on the metric ({trials[1]} trials)"
    return [["verdicts on identical variants", "at most 5% false", said]]


# ---- what pairing and small scales are worth -------------------------------------------------------------------------


def pairing() -> str:
    """What pairing by seed removes, metric by metric, in the study of the balance losses."""
    stored = Stored("balance_losses", "smoke")
    rows = []
    for metric in (LOSS, *LOADS):
        low, high = stored.share_of_noise(read("sweep", "balance_losses")["baseline"], metric)
        rows.append([quantity(metric).name, f"{low:.2f} to {high:.2f}"])
    header = ["metric", "spread of paired differences, relative to unpaired ones"]
    text = (
        f"Measured in `balance_losses` at smoke ({stored.seeds} seeds, from the least to the most noisy arm). Below 1, "
        "pairing removes noise; at 1 and above it removes none."
    )
    return f"{table(header, rows)}\n\n{text}"


def order() -> str:
    """How often arms that are in one order at smoke are in the same order at tiny."""
    low, high = Stored("balance_losses", "smoke"), Stored("balance_losses", "tiny")
    loads, losses = (orders_kept(low, high, metrics) for metrics in (LOADS, (LOSS,)))
    return (
        "How often two arms of `balance_losses` that are in one order at smoke are in the same order at tiny: in "
        f"{loads[0]} of {loads[1]} pairs over five measures of load, and in {losses[0]} of {losses[1]} in validation "
        "loss. By chance it would be half."
    )


def studies() -> str:
    """The reports that are committed, and their commands."""
    rows = []
    for path in sorted(RESULTS.glob("*/*/table.csv")):
        study, scale = path.parts[-3:-1]
        page = f"{study}/{scale}/report.md"
        shown = f"[{study}]({page})" if (RESULTS / page).is_file() else f"{study} ([table]({study}/{scale}/table.csv))"
        seeds = Stored(study, scale).seeds
        rows.append([shown, scale, str(seeds), f"`python -m ablations.run sweep={study} scale={scale}`"])
    return table(["study", "scale", "seeds", "command"], rows)


# ---- deployed models -------------------------------------------------------------------------------------------------

HELD = ("deployed/kv_bits", "deployed/kv_bytes_per_token")
KEPT = {"bench/copying": ".3f", "recall/accuracy": ".3f", "deployed/agreement": ".1%"}  # metric -> format


def deployed() -> str:
    """What fewer bits per cached element, and products in other precisions, cost the same weights."""
    kv, precision = Stored.largest("kv_bits"), Stored.largest("precision")
    rows = []
    for arm in kv.table.index:
        held = [f"{kv.mean(arm, metric):,.3g}" for metric in HELD]
        cost = "" if arm == "bits16" else _cost(kv, arm, "bits16")
        rows.append([f"`{arm}`", *held, cost, *(kv.spread(arm, metric, form) for metric, form in KEPT.items())])
    names = (quantity(metric).label for metric in (*HELD, *KEPT))
    bits, size, *kept = names
    caches = table(["arm", bits, size, "loss minus bits16 (nats/token)", *kept], rows)
    products = table(
        ["arm", "loss minus fp32 (nats/token)", quantity("deployed/agreement").label],
        [
            [f"`{arm}`", _cost(precision, arm, "fp32"), precision.spread(arm, "deployed/agreement", ".1%")]
            for arm in precision.table.index
            if arm != "fp32"
        ],
    )
    text = (
        f"Caches were measured at {kv.scale} with {kv.seeds} seeds, products at {precision.scale} with "
        f"{precision.seeds}; intervals are those of single paired differences, at 95%. All arms but `mha16`, which has "
        "MHA and the same number of parameters, evaluate the same weights."
    )
    verdicts = f"Verdicts against `bits16`: {kv.verdicts()}. Against `fp32`: {precision.verdicts()}."
    return f"{text}\n\n{caches}\n\n{products}\n\n{verdicts}"


def _cost(stored: Stored, arm: str, baseline: str) -> str:
    """Format a difference in loss with as many digits as its interval needs."""
    each = stored.paired(arm, baseline)
    return difference_text(float(each.mean()), *t_interval(each))


# ---- longer contexts -------------------------------------------------------------------------------------------------


def extension() -> str:
    """Loss by position in the study of longer contexts."""
    return results_context.extension(table)


def needles() -> str:
    """What is found of sentences hidden in long texts."""
    return results_context.needles(table)


# ---- balancing, and costs --------------------------------------------------------------------------------------------


def balancing() -> str:
    """What balancing without a loss does."""
    return results_balance.balancing(table)


def costs() -> str:
    """What the report says of cost."""
    return results_balance.costs(table)


# ---- speed -----------------------------------------------------------------------------------------------------------

MODELS = {
    "A": "1.5M parameters, 8 experts",
    "C": "20M parameters, 64 experts",
    "D": "80M parameters, 64 experts",
    "E": "3.2M parameters, 64 experts",
}


SIZES = ("batch", "context")  # of the benchmark of decoding


def speed() -> str:
    """The ratios of the last `make bench`."""
    path = max((RESULTS.parent / "benchmarks" / "results" / "bench").glob("*.json"))
    kept = json.loads(path.read_text())
    found = {row["what"]: row for row in kept["rows"]}
    rows = []
    for name, size in MODELS.items():
        step, memory = found[f"training step, {name}"], found[f"its memory, {name}"]
        low, high = step["spread"]
        ratio = f"{step['ratio']:.2f} ({low:.2f} to {high:.2f})"
        rows.append([f"{name}: {size}", step["peer"], step["ours"], ratio, step["limit"], f"{memory['ratio']:.2f}"])
    header = [
        "model",
        "transformers, best setting",
        "dsv2",
        "ratio (middle half)",
        "of the matmul rate",
        "memory ratio",
    ]
    layers = [
        f"{row['ratio']:.2f} with {what.split(', ')[1]}"
        for what, row in found.items()
        if what.startswith("MoE layer") and what.endswith("even load")
    ]
    text = (
        f"Measured on {path.stem}, {kept['threads']} threads, {kept['machine']['cpu']}. Forward and backward of a "
        f"MoE layer, relative to a dense FFN of equal FLOPs: {', '.join(layers)}. A step of decoding with MLA on model "
        f"C, through `dsv2.generate`'s engine: {_decoding_ratios()} times as fast as transformers "
        "([all sizes](docs/generation.md#speed))."
    )
    return f"{table(header, rows)}\n\n{text}"


def _decoding_ratios() -> str:
    """MLA against the peer at the corners of the grid where it ran."""
    compared = [cell for cell in _decode()["cells"] if cell["peer"]]
    corners = [
        cell
        for cell in compared
        if all(cell[size] in (min(c[size] for c in compared), max(c[size] for c in compared)) for size in SIZES)
    ]
    words = [f"{c['ratio']:.1f} ({_rows(c['batch'])}, {c['context']:,} tokens of context)" for c in corners]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _decode() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((RESULTS.parent / "benchmarks" / "results" / "decode.json").read_text())
    return kept


def decoding() -> str:
    """The steps of `benchmarks.decode`, and the caches that they read."""
    kept = _decode()
    sides = list(kept["cells"][0]["ms"])
    rows = []
    for cell in kept["cells"]:
        low, high = cell["middle_half"]
        compared = (
            [f"{cell['peer_ms']:,.1f}", f"{cell['ratio']:.1f} ({low:.1f} to {high:.1f})"] if cell["peer"] else ["", ""]
        )
        limits = f"{cell['limit_ms']:.2f}", f"{cell['arithmetic_ms']:.2f}"
        times = (f"{cell['ms'][side]:.2f}" for side in sides)
        rows.append([f"{cell['batch']} x {cell['context']:,}", compared[0], *times, compared[1], *limits])
    header = ["rows x context", "transformers", *sides, "MLA, times as fast (middle half)", "MLA's bytes", "its FLOPs"]
    last = kept["cells"][-1]
    sizes = "; ".join(f"{side}: {size:,}" for side, size in last["cache_bytes"].items())
    mha, packed = (last["cache_bytes"][side] for side in ("MHA", "MLA, 6 bits"))
    text = (
        f"Bytes of the cache per token, as allocated: {sizes}. In the memory of one row of MHA fit "
        f"{mha / packed:.0f} of MLA at 6 bits. Measured with {kept['machine']['cpu']}."
    )
    return f"{table(header, rows)}\n\n{text}"


def eight() -> str:
    """The eight effects on which the literature agrees."""
    return results_effects.eight(table)


PARTS = (demo, effects, eight, pairing, order, studies, deployed, extension, needles, balancing, costs, speed, decoding)
BLOCKS: dict[str, Callable[[], str]] = {function.__name__: function for function in PARTS}


def filled(page: str) -> str:
    """Return a page with all its blocks as the results have them. Raises KeyError for a block that is none."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", page)


def main(words: Sequence[str]) -> int:
    """Write all pages, or with `--check` say which would change; return the exit status."""
    if set(words) - {"--check"}:
        print(__doc__, file=sys.stderr)
        return 2
    stale = [name for name in PAGES if filled(text := (ROOT / name).read_text()) != text]
    if "--check" not in words:
        for name in stale:
            (ROOT / name).write_text(filled((ROOT / name).read_text()))
    print("\n".join(f"{'stale' if words else 'written'}: {name}" for name in stale) or "every page is as it should be")
    return int(bool(words) and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
