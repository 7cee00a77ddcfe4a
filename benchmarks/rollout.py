"""One set of weights in two modes: how fast GRPO draws answers and trains on them, and what each mode holds.

    python -m benchmarks.rollout [--answers 64] [--rounds 5] [--threads 2]

A model of 0.45M parameters (the preset `tiny`) answers generated instructions by the engine and takes a step on its
answers, as in a run with objective=grpo. Prints, by precision, the tokens per second of each phase, the seconds between
the last token of a rollout and the first of training, the bytes that only one phase needs, and how far the
log-probabilities of the engine are from those of training with the same weights. No weight is copied between the
phases, which is asserted. Writes `benchmarks/results/rollout.json`.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import dsv2
from dsv2.alignment.grpo import GRPOModule
from dsv2.alignment.rollout import Rows
from dsv2.inference.deployed import allocate_caches
from dsv2.inference.replies import ROWS
from dsv2.training.machine import prepare

RUN = [
    *("model=tiny", "model/attention=mla", "model.vocab_size=512", "model.init_std=0.05", "data=instructions"),
    *("data.instances=2000", "data.tasks=[brackets,copy]", "objective=grpo", "objective.max_new_tokens=24"),
    *("trainer.progress=false", "logger.wandb.mode=disabled", "trainer.accelerator=cpu"),
]


def num_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(precision: str, answers: int, rounds: int) -> dict[str, float]:
    """Draw answers and train on them, `rounds` times; return medians."""
    run = dsv2.load(
        [*RUN, f"trainer.precision={precision}", f"trainer.batch.size={answers}", "trainer.tokens=10_000_000"]
    )
    assert run.objective is not None
    module = run.objective.module(run)
    assert isinstance(module, GRPOModule)
    length = run.trainer.sequence_length
    module.begin(run.data.open(sequence_length=length, seed=0, validation_tokens=length), resumed=False)
    optimizer = run.optim.build(module)
    places = [weight.data_ptr() for weight in module.parameters()]
    measured: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            measured.setdefault(name, []).append(value)

    for step in range(rounds + 1):
        module.zero_grad()
        began = time.perf_counter()
        module.draw(step)
        drawn = time.perf_counter()
        assert module.answers is not None
        part = module.answers.part(0, answers)
        rows = Rows.joined(Rows.of(part, length=length, pad_id=module.tokenizer.end_id))
        ready = time.perf_counter()
        module.part(part, rows).losses.total.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), run.optim.clip_norm)
        with torch.no_grad():
            now, _ = module._log_probabilities(module.model, rows)
        trained = time.perf_counter()
        optimizer.step()
        difference = (now - part.old[rows.order]).abs()
        if step:  # the first one warms up
            note(rollout_tokens_per_s=int(part.answered.sum()) / (drawn - began), switch_seconds=ready - drawn)
            note(training_tokens_per_s=int(part.lengths.sum()) / (trained - ready))
            note(largest_difference=float(difference.max()), mean_difference=float(difference.mean()))
    assert [weight.data_ptr() for weight in module.parameters()] == places, "the weights are where they were"
    longest = max(len(prompt.ids) for prompt in module.prompts) + 24
    cache = allocate_caches(module.model, batch_size=min(ROWS, answers), max_length=longest).num_bytes
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    sizes = {"weights": num_bytes(module.parameters()), "rollout_cache": cache}
    sizes |= {"gradients": num_bytes(gradients), "optimizer": num_bytes(state)}
    return {name: median(values) for name, values in measured.items()} | {f"{k}_bytes": v for k, v in sizes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=64, help="per step (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured (default 5)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    prepare()
    torch.set_num_threads(arguments.threads)
    found = {precision: measure(precision, arguments.answers, arguments.rounds) for precision in ("fp32", "bf16")}
    table = Table("", *found)
    for name in found["fp32"]:
        table.add_row(name.replace("_", " "), *(f"{values[name]:.4g}" for values in found.values()))
    Console().print(table)
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    values = {"answers": arguments.answers, "threads": arguments.threads, **machine, **found}
    path = Path(__file__).parent / "results" / "rollout.json"
    path.write_text(json.dumps(values, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
