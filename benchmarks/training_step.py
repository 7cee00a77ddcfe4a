"""One training step (forward, backward, AdamW) against Hugging Face's DeepseekV2, on the same weights and tokens.

    python -m benchmarks.training_step [A C E D] [--threads 2] [--rounds 15]

Both of Hugging Face's expert implementations run; the ratio is against the faster one. Logits and losses must agree
before anything is timed. The sides take turns step by step, so that a change of the machine's speed meets both; the
table gives medians and the middle half of the pairwise ratios. Writes `benchmarks/results/training_step.json`.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import dsv2

# d, layers, heads, nope/rope/v, KV latent, experts, active, shared, expert width, dense width, vocabulary
SHAPES = {
    "A": (128, 4, 4, (32, 16, 32), 64, 8, 2, 2, 64, 512, 1024),
    "C": (256, 6, 8, (32, 16, 32), 64, 64, 6, 2, 64, 1024, 4096),
    "D": (384, 8, 8, (48, 24, 48), 128, 64, 6, 2, 128, 1536, 8192),
    "E": (128, 4, 4, (32, 16, 32), 64, 64, 6, 2, 32, 512, 1024),
}
BATCH, LENGTH, WARM_UP = 8, 256, 3
TOLERANCE = 1e-5  # largest difference of logits over the largest logit, float32


def hugging_face(name: str, experts: str) -> Any:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

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
    model = DeepseekV2ForCausalLM(config).train()
    model.set_experts_implementation(experts)
    return model


def trainer(model: torch.nn.Module) -> Callable[[], float]:
    """A function that does one step and returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(1)

    def step() -> float:
        tokens = torch.randint(0, 1000, (BATCH, LENGTH + 1), generator=generator)
        started = time.perf_counter()
        loss = F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def measure(name: str, rounds: int) -> dict[str, Any]:
    sides = {f"transformers, {kind} experts": hugging_face(name, kind) for kind in ("eager", "grouped_mm")}
    with tempfile.TemporaryDirectory() as folder:
        sides["transformers, eager experts"].save_pretrained(folder)
        ours = dsv2.from_hf(folder).train()
    tokens = torch.randint(0, 1000, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = sides["transformers, eager experts"](tokens).logits
        for side, got in [("dsv2", ours(tokens).logits)] + [(k, m(tokens).logits) for k, m in sides.items()]:
            difference = ((got - expected).abs().max() / expected.abs().max()).item()
            if difference > TOLERANCE:
                sys.exit(f"model {name}: logits of {side} are off by {difference:.1e}; nothing is timed")
    steps = {side: trainer(model) for side, model in (sides | {"dsv2": ours}).items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        for side, step in steps.items():
            seconds[side].append(step())
    best = min(sides, key=lambda side: statistics.median(seconds[side]))
    ratios = [theirs / mine for theirs, mine in zip(seconds[best], seconds["dsv2"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    rate = {side: BATCH * LENGTH / statistics.median(times) for side, times in seconds.items()}
    return {
        "model": name,
        "tokens_per_s": {side: round(value) for side, value in rate.items()},
        "best_peer": best,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_middle_half": [round(low, 3), round(high, 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["A", "C", "E"], choices=[*SHAPES, []], metavar="MODEL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console, rows = Console(), []
    table = Table(title=f"Training step, {BATCH} x {LENGTH} tokens, float32, {arguments.threads} threads: tokens/s")
    for column in ("model", "transformers eager", "transformers grouped_mm", "dsv2", "dsv2 / best", "middle half"):
        table.add_column(column, justify="right")
    for name in arguments.models:
        row = measure(name, arguments.rounds)
        rows.append(row)
        rates = row["tokens_per_s"]
        low, high = row["ratio_middle_half"]
        table.add_row(name, *(f"{rate:,}" for rate in rates.values()), f"{row['ratio']:.2f}x", f"{low:.2f}-{high:.2f}")
        console.print(f"model {name}: {row['ratio']:.2f}x {row['best_peer']}", highlight=False)
    console.print(table)
    import transformers

    machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = Path(__file__).parent / "results" / "training_step.json"
    result.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
