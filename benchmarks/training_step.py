"""One training step (forward, backward, AdamW) against Hugging Face's DeepseekV2, on the same weights and tokens.

    python -m benchmarks.training_step [A C D E] [--threads 2] [--rounds 15]

All four of Hugging Face's settings run, {eager, grouped_mm} experts x {eager, sdpa} attention, and the ratio is against
the fastest one of each model; ours runs in plain torch and with the ops that are compiled for the CPU. Logits and
losses must agree before anything is timed. The sides take turns step by step, so that a change of the machine's rate
meets all of them; the table gives medians, the middle half of the pairwise ratios, the share of the matmul rate
measured between rounds, and the memory that training takes beside the weights. Writes
`benchmarks/results/training_step.json`.
"""

import argparse
import gc
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import dsv2
from dsv2.accounting.account import account
from dsv2.kernels.choice import using

# d, layers, heads, nope/rope/v, KV latent, experts, active, shared, expert width, dense width, vocabulary
SHAPES = {
    "A": (128, 4, 4, (32, 16, 32), 64, 8, 2, 2, 64, 512, 1024),
    "C": (256, 6, 8, (32, 16, 32), 64, 64, 6, 2, 64, 1024, 4096),
    "D": (384, 8, 8, (48, 24, 48), 128, 64, 6, 2, 128, 1536, 8192),
    "E": (128, 4, 4, (32, 16, 32), 64, 64, 6, 2, 32, 512, 1024),
}
BATCH, LENGTH, WARM_UP = 8, 256, 3
TOLERANCE = 1e-5  # largest difference of logits over the largest logit, and relative of losses, float32
PEERS = tuple(product(("eager", "grouped_mm"), ("eager", "sdpa")))  # experts, attention
OURS = ("torch", "cpu")  # kernels
MATMUL = 1024  # size of the square matmul that the share of the peak refers to
Side = tuple[str, ...]


def title(side: Side) -> str:
    return f"transformers ({', '.join(side)})" if side in PEERS else f"dsv2 ({side[0]})"


def hugging_face(name: str, experts: str, attention: str) -> Any:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    d, layers, heads, (nope, rope, v), latent, num_experts, active, shared, width, dense, vocabulary = SHAPES[name]
    config = DeepseekV2Config(
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        head_dim=rope,
        v_head_dim=v,
        kv_lora_rank=latent,
        q_lora_rank=None,
        n_routed_experts=num_experts,
        num_experts_per_tok=active,
        n_shared_experts=shared,
        moe_intermediate_size=width,
        intermediate_size=dense,
        first_k_dense_replace=1,
        vocab_size=vocabulary,
        routed_scaling_factor=1.0,
        topk_method="greedy",
        n_group=1,
        topk_group=1,
        max_position_embeddings=2048,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = DeepseekV2ForCausalLM._from_config(config, attn_implementation=attention).train()
    model.set_experts_implementation(experts)
    return model


def build(name: str, side: Side) -> tuple[torch.nn.Module, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Return a side's model and the function of its mean loss, from tokens and targets."""
    peer = hugging_face(name, *(side if side in PEERS else PEERS[0]))
    if side in PEERS:
        return peer, lambda tokens, targets: F.cross_entropy(peer(tokens).logits.flatten(0, 1), targets.flatten())
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = dsv2.from_hf(folder).train()

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with using(side[0]):
            return ours.mean_nats(ours.hidden(tokens)[0], targets)

    return ours, loss


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 1000, (BATCH, LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def trainer(model: torch.nn.Module, loss: Callable[..., torch.Tensor]) -> Callable[[], float]:
    """Return a function that does one step and returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(1)

    def step() -> float:
        tokens, targets = batch(generator)
        started = time.perf_counter()
        loss(tokens, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def peak_memory(name: str, side: Side, threads: int) -> int:
    """Return the bytes that training adds, at its peak, to a process that holds the model; call it in a new one."""
    torch.set_num_threads(threads)
    step = trainer(*build(name, side))
    gc.collect()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    for _ in range(WARM_UP):
        step()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 - before


def require_equal(name: str, sides: dict[Side, Any]) -> None:
    """Exit unless all sides have the same logits and losses."""
    tokens, targets = batch(torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = sides[PEERS[0]][0](tokens).logits
        mean = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
        for side, (model, loss) in sides.items():
            off = ((model(tokens).logits - expected).abs().max() / expected.abs().max()).item()
            off = max(off, (loss(tokens, targets) / mean - 1).abs().item())
            if off > TOLERANCE:
                sys.exit(f"model {name}: {title(side)} is off by {off:.1e}; nothing is timed")


def flop_rate() -> float:
    """Return the FLOPs per second of one square matmul."""
    a = torch.ones(MATMUL, MATMUL)
    started = time.perf_counter()
    a @ a
    return 2 * MATMUL**3 / (time.perf_counter() - started)


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    sides: dict[Side, Any] = {side: build(name, side) for side in (*PEERS, *((kernels,) for kernels in OURS))}
    require_equal(name, sides)
    flops = account(sides[OURS[0],][0].config, context=LENGTH).flops_per_token
    steps = {side: trainer(*parts) for side, parts in sides.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[Side, list[float]] = {side: [] for side in steps}
    peaks = []
    for _ in range(rounds):
        peaks.append(flop_rate())
        for side, step in steps.items():
            seconds[side].append(step())
    best = min(PEERS, key=lambda side: statistics.median(seconds[side]))
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = {side: pool.submit(peak_memory, name, side, threads).result() for side in sides}
    rows = []
    for side, times in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds[best], times, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rate = BATCH * LENGTH / statistics.median(times)
        rows.append(
            {
                "side": title(side),
                "tokens_per_s": round(rate),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_middle_half": [round(low, 3), round(high, 3)],
                "share_of_peak": round(rate * flops / statistics.median(peaks), 3),
                "peak_memory_mb": round(memory[side] / 1e6),
            }
        )
    return {"model": name, "threads": threads, "best_peer": title(best), "sides": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="of A C D E; all by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    console, results = Console(), []
    for threads, name in product(arguments.threads, arguments.models or SHAPES):
        torch.set_num_threads(threads)
        result = measure(name, arguments.rounds, threads)
        results.append(result)
        table = Table(title=f"Model {name}, {BATCH} x {LENGTH} tokens, float32, threads: {threads}")
        for column in ("side", "tokens/s", "to best peer", "middle half", "of matmul", "memory (MB)"):
            table.add_column(column, justify="left" if column == "side" else "right", no_wrap=True)
        for row in result["sides"]:
            low, high = row["ratio_middle_half"]
            numbers = f"{row['tokens_per_s']:,}", f"{row['ratio']:.2f}x", f"{low:.2f}-{high:.2f}"
            table.add_row(row["side"], *numbers, f"{row['share_of_peak']:.0%}", f"{row['peak_memory_mb']:,}")
        console.print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    versions = {"torch": torch.__version__, "transformers": version("transformers")}
    path = Path(__file__).parent / "results" / "training_step.json"
    path.write_text(json.dumps({"machine": machine, "versions": versions, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
