"""Decoding with cached keys and values: four kinds of attention here, and Hugging Face's DeepseekV2.

    python -m benchmarks.decode [--batches 1 4 16 64] [--contexts 512 2048 8192] [--rounds 5]

One 20M-parameter model of 64 experts, with MLA (also with its cache at 6 bits), MHA, GQA and MQA; transformers has MLA
on the same weights, in the fastest of its four settings at each size, {eager, grouped_mm} experts x {eager, sdpa}
attention. Ours are steps of the engine behind `dsv2.generate`, sampling included; theirs are forward passes with their
cache and an argmax, without what their `generate` adds. All rows continue the same prompt; reading it is not part of a
step, but is the time to the first token. The sides take turns, and ratios are medians of those of single rounds.

Beforehand, the logits of ours and theirs must agree over several steps at every size, and those of the other kinds
with those of plain torch at few rows. There are two limits: what a copy takes to move as many bytes as a step must
read (weights, those of each expert that a row chose once, and the cache), and what a square matmul takes for its
FLOPs, which is longer where many heads share few latents. A table says how many rows of the longest context fit in a
GiB. Writes `benchmarks/results/decode.json`; exits 2 if anything disagrees.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import dsv2
from benchmarks.training_step import PEERS, flop_rate, hugging_face, title
from dsv2.inference.deployed import allocate_caches, with_cache_of
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Request
from dsv2.inference.sampling import Sampling
from dsv2.kernels.choice import using
from dsv2.models.attention.gqa import GQA
from dsv2.models.attention.mla import MLA as MLAttention
from dsv2.models.transformer import Transformer

SHAPE, WIDTH, HEADS = "C", 32, 8  # of `training_step`; of the heads of GQA
GROUPS = {"MHA": 8, "GQA": 2, "MQA": 1}
MLA, PACKED = "MLA", "MLA, 6 bits"
SIDES = (MLA, PACKED, *GROUPS)
STEPS, COMPARED = 6, 3  # steps of ours per round; steps whose logits are compared
FEW = 4  # rows whose logits are compared with those of plain torch, in which many take minutes
TOLERANCE = 1e-5  # largest difference of logits over the largest logit, float32
PACKED_TOLERANCE = 1e-2  # of 6 bits, where the last bit of a latent may change its code
COPY, GIB = 2**28, 2**30
LARGEST = 4 * GIB  # bytes of a cache; sizes at which one is larger are left out
TARGETS = {(1, 512): 6, (1, 2048): 8, (1, 8192): 15, (16, 512): 6, (16, 2048): 25, (16, 8192): 55}


class Cell(NamedTuple):
    """What was measured at one batch size and context."""

    batch: int
    context: int
    peer: str  # its fastest setting; empty if it was not run
    peer_ms: float
    ms: dict[str, float]  # of a step, by side
    ratio: float  # MLA's rate over the peer's, NaN without one
    middle_half: tuple[float, float]
    limit_ms: float  # MLA's bytes
    arithmetic_ms: float  # MLA's FLOPs
    first_ms: dict[str, float]  # to the first token, by side, and of the peer
    cache_bytes: dict[str, int]  # per token, by side, as allocated

    @property
    def share(self) -> float:
        """How near MLA is to the larger of the two limits."""
        return max(self.limit_ms, self.arithmetic_ms) / self.ms[MLA]


def build() -> tuple[Any, dict[str, Transformer]]:
    """Return the peer, and our models."""
    peer = hugging_face(SHAPE, *PEERS[0]).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        mla = dsv2.from_hf(folder).eval()
    models = {MLA: mla, PACKED: with_cache_of(6).of(mla)}
    for name, groups in GROUPS.items():
        attention = GQA.Config(num_heads=HEADS, num_kv_heads=groups, head_dim=WIDTH)
        models[name] = replace(mla.config, attention=attention, init_std=0.05).build().eval()
    return peer, models


def prompt(context: int) -> list[int]:
    return torch.randint(0, 4096, (context,), generator=torch.Generator().manual_seed(context)).tolist()


class Ours:
    """An engine whose rows all continue the same prompt."""

    def __init__(self, model: Transformer, batch: int, context: int, steps: int) -> None:
        self.engine = Engine(model, num_rows=batch, max_length=context + steps + 2)
        started = time.perf_counter()
        for _ in range(batch):
            self.engine.submit(Request(prompt=prompt(context), max_new_tokens=steps + 2, sampling=Sampling()))
        while not self.engine.rows.decoding:
            self.engine.step()
        self.first = time.perf_counter() - started
        while self.engine.rows.decoding < batch:
            self.engine.step()

    def step(self) -> float:
        started = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - started


class Theirs:
    """A cache of the peer's whose rows all hold the same prompt."""

    def __init__(self, peer: Any, batch: int, context: int) -> None:
        from transformers import DynamicCache

        peer.set_experts_implementation("grouped_mm")
        peer.set_attn_implementation("sdpa")
        self.peer, self.cache, started = peer, DynamicCache(), time.perf_counter()
        logits = self.forward(torch.tensor([prompt(context)]))
        self.first = time.perf_counter() - started
        self.cache.batch_repeat_interleave(batch)
        self.tokens = logits.argmax(-1, keepdim=True).expand(batch, 1)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.peer(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def step(self) -> float:
        started = time.perf_counter()
        self.tokens = self.forward(self.tokens).argmax(-1, keepdim=True)
        return time.perf_counter() - started

    def best(self) -> tuple[str, str]:
        """Choose the fastest setting by a step of each after another, and keep it."""
        seconds = {}
        for setting in PEERS:
            self.choose(setting)
            self.step()
            seconds[setting] = self.step()
        best = min(PEERS, key=lambda setting: seconds[setting])
        self.choose(best)
        return best

    def choose(self, setting: tuple[str, str]) -> None:
        self.peer.set_experts_implementation(setting[0])
        self.peer.set_attn_implementation(setting[1])


@torch.inference_mode()
def logits_of(model: Transformer, batch: int, context: int, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the logits (B, V) after the prompt and each of some tokens (B, 1), which are read one by one."""
    caches = allocate_caches(model, batch_size=1, max_length=context + len(tokens))
    ids = torch.tensor([prompt(context)])
    for chunk in ids.split(512, dim=1):
        states, _ = model.hidden(chunk, caches=caches)
    out = [model.ops.linear(states[:, -1], model.head_weight).expand(batch, -1)]
    rows = allocate_caches(model, batch_size=batch, max_length=context + len(tokens))
    for whole, single in zip(rows.layers, caches.layers, strict=True):
        for row in range(batch):
            for to, of in zip(tensors(whole), tensors(single), strict=True):
                to[row] = of[0]
    rows.lengths[:] = context
    for step in tokens:
        states, _ = model.hidden(step, caches=rows)
        out.append(model.ops.linear(states[:, -1], model.head_weight))
    return out


def tensors(layer: Any) -> tuple[torch.Tensor, ...]:
    return getattr(layer, "held", layer).tensors


def require_equal(models: dict[str, Transformer], theirs: Theirs | None, batch: int, context: int) -> None:
    """Exit unless our logits are theirs, and those of the other kinds are those of plain torch."""
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randint(0, 4096, (batch, 1), generator=generator) for _ in range(COMPARED)]
    for side, model in models.items():
        if side == MLA and theirs is not None:
            kept = copy.deepcopy(theirs.cache)
            expected = [theirs.forward(tokens) for tokens in steps]
            theirs.cache = kept
        elif batch <= FEW:
            with using("torch"):
                expected = logits_of(model, batch, context, steps)[1:]
        else:
            continue
        for got, want in zip(logits_of(model, batch, context, steps)[1:], expected, strict=True):
            off = ((got - want).abs().max() / want.abs().max()).item()
            if not off <= (PACKED_TOLERANCE if side == PACKED else TOLERANCE):
                print(f"{side} at {batch} x {context} is off by {off:.1e}; nothing is timed", file=sys.stderr)
                sys.exit(2)


def copy_rate() -> float:
    """Return the bytes per second that a copy reads and writes."""
    source, target = torch.ones(COPY // 4), torch.ones(COPY // 4)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * COPY / statistics.median(seconds)


def bytes_to_read(model: Transformer, batch: int, context: int) -> float:
    """Return the bytes of a step: weights, those of an expert if a row is expected to choose it, and cached tokens.

    Rows choose experts as if at random.
    """
    config, total = model.config, 0.0
    for layer in range(config.num_layers):
        for weight in config.layer_weights(layer):
            total += 4 * weight.total * (1 - (1 - weight.active_ratio) ** batch)
    total += 4 * model.head_weight.numel()
    return total + batch * context * token_bytes(model)


def token_bytes(model: Transformer) -> int:
    """Return the bytes of a token in the cache, in float32."""
    shapes = model.config.attention.cache_shapes()
    return 4 * model.config.num_layers * sum(torch.Size(shape).numel() for shape in shapes)


def flops(model: Transformer, batch: int, context: int) -> float:
    """Return the FLOPs of a step of MLA, absorbed."""
    config, attention = model.config, model.config.attention
    assert isinstance(attention, MLAttention.Config)
    weights = sum(weight.active for layer in range(config.num_layers) for weight in config.layer_weights(layer))
    scores = 2 * attention.kv_latent_dim + attention.rope_dim  # per head and key, scores and weighted latents
    per_layer = attention.num_heads * scores * context
    return 2.0 * batch * (weights + model.head_weight.numel() + config.num_layers * per_layer)


def measure(
    peer: Any, models: dict[str, Transformer], batch: int, context: int, rounds: int, *, with_peer: bool
) -> Cell:
    """Measure all sides at one size."""
    theirs = Theirs(peer, batch, context) if with_peer else None
    require_equal(models, theirs, batch, context)
    ours = {side: Ours(model, batch, context, STEPS * (rounds + 1)) for side, model in models.items()}
    best = theirs.best() if theirs else None
    seconds: dict[str, list[float]] = {side: [] for side in ours}
    peer_seconds, rates, flop_rates = [], [], []
    for number in range(rounds + 1):
        rates.append(copy_rate())
        flop_rates.append(flop_rate())
        for side, engine in ours.items():
            step = statistics.median(engine.step() for _ in range(STEPS))
            if number:  # the first round is for warming up
                seconds[side].append(step)
        if theirs and number:
            peer_seconds.append(theirs.step())
    middle = {side: statistics.median(times) for side, times in seconds.items()}
    ratios = [them / us for them, us in zip(peer_seconds, seconds[MLA], strict=True)] if theirs else []
    low, _, high = statistics.quantiles(ratios, n=4) if ratios else (float("nan"),) * 3
    return Cell(
        batch,
        context,
        title(best) if best else "",
        1e3 * statistics.median(peer_seconds) if theirs else float("nan"),
        {side: 1e3 * value for side, value in middle.items()},
        statistics.median(ratios) if ratios else float("nan"),
        (low, high),
        1e3 * bytes_to_read(models[MLA], batch, context) / statistics.median(rates),
        1e3 * flops(models[MLA], batch, context) / statistics.median(flop_rates),
        {side: 1e3 * engine.first for side, engine in ours.items()} | ({"peer": 1e3 * theirs.first} if theirs else {}),
        {
            side: engine.engine.rows.cache.num_bytes // (batch * engine.engine.max_length)
            for side, engine in ours.items()
        },
    )


def cells(
    batches: list[int], contexts: list[int], rounds: int, sides: tuple[str, ...] = SIDES, peers: int = 16
) -> Iterator[Cell]:
    """Measure all sizes; the peer runs with up to `peers` rows."""
    peer, models = build()
    models = {side: models[side] for side in sides}
    with using("cpu"):
        for batch, context in product(batches, contexts):
            if batch * context * max(map(token_bytes, models.values())) > LARGEST:
                continue
            yield measure(peer, models, batch, context, rounds, with_peer=batch <= peers)


def print_tables(measured: list[Cell]) -> None:
    console = Console(width=150)
    table = Table(
        title="Milliseconds per step, float32, 2 threads; limit: the bytes of MLA's step at the rate of a copy"
    )
    for column in (
        "batch",
        "context",
        "transformers",
        *SIDES,
        "MLA, ratio",
        "middle half",
        "target",
        "bytes",
        "FLOPs",
        "of both",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for cell in measured:
        target = TARGETS.get((cell.batch, cell.context))
        ratio = (
            (f"{cell.ratio:.1f}x", f"{cell.middle_half[0]:.1f}-{cell.middle_half[1]:.1f}") if cell.peer else ("", "")
        )
        table.add_row(
            *(str(cell.batch), f"{cell.context:,}", f"{cell.peer_ms:,.1f}" if cell.peer else ""),
            *(f"{cell.ms[side]:.2f}" for side in SIDES),
            *ratio,
            f"{target}x{'' if cell.ratio >= target else ' missed'}" if target else "",
            f"{cell.limit_ms:.2f}",
            f"{cell.arithmetic_ms:.2f}",
            f"{cell.share:.0%}",
        )
    console.print(table)
    longest = max(measured, key=lambda cell: (cell.context, -cell.batch))
    table = Table(title=f"Cache in bytes per token, rows of {longest.context:,} tokens in a GiB, and first token")
    for column in ("", "bytes per token", "rows in a GiB", f"first token at {longest.context:,} (ms)"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for side, size in longest.cache_bytes.items():
        table.add_row(side, f"{size:,}", f"{GIB // (size * longest.context):,}", f"{longest.first_ms[side]:,.0f}")
    if "peer" in longest.first_ms:
        table.add_row("transformers", "", "", f"{longest.first_ms['peer']:,.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    measured = []
    for cell in cells(arguments.batches, arguments.contexts, arguments.rounds):
        print(
            f"{cell.batch} x {cell.context:,}: {cell.ms[MLA]:.2f} ms, {cell.ratio:.1f} times as fast", file=sys.stderr
        )
        measured.append(cell)
    print_tables(measured)
    machine = {"processor": platform.processor() or platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    versions = {"torch": torch.__version__, "transformers": version("transformers")}
    kept = {
        "machine": machine,
        "versions": versions,
        "rounds": arguments.rounds,
        "cells": [c._asdict() for c in measured],
    }
    path = Path(__file__).parent / "results" / "decode.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
