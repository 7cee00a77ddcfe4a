"""What a training step costs beside forward, backward and AdamW: telemetry, Lightning's loop, and data.

    python -m benchmarks.loop [--steps 200] [--threads 2]

Trains a model of 1.5M parameters with 8 experts (model A of `benchmarks.training_step`) with every quantity logged as
in a study, every 10 steps, W&B offline included, and takes the time of each part. Validation and checkpoints happen
after the last step, outside of what is timed. Prints the shares of the loop's time and writes
`benchmarks/results/loop.json`.
"""

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

import dsv2
from dsv2.training.callbacks.recorder import Recorder
from dsv2.training.fit import fit
from dsv2.training.machine import prepare
from dsv2.training.module import Module

MODEL = [
    *("model.dim=128", "model.num_layers=4", "model.vocab_size=1024", "data.vocab_size=1024", "model/attention=mla"),
    *("model.shape.num_experts=8", "model.shape.top_k=2", "model.shape.num_shared=2", "model.shape.expert_dim=64"),
    *("model.shape.ffn_dim=512", "model.shape.num_devices=4", "trainer.batch.size=8", "trainer.sequence_length=256"),
]
WARM_UP = 20  # steps, of which nothing is counted
PARTS = ("forward, backward, AdamW", "telemetry", "loop and data")


class Clock:
    """Adds up the seconds of the parts of a loop, from step `WARM_UP` to the last but one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counted: dict[str, float] = {}
        self.steps, self.begun, self.whole = 0, 0.0, 0.0

    def timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **settings: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments, **settings)
            self.seconds[part] += time.perf_counter() - started
            return result

        return timing

    def start(self) -> None:
        """Count from here on at the end of the warm-up, and up to here at any later step."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.seconds.clear()
            self.begun = time.perf_counter()
        self.whole, self.counted = time.perf_counter() - self.begun, dict(self.seconds)


def shares(steps: int) -> dict[str, float]:
    clock = Clock()

    class Timed(Module):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.start()

        optimizer_step = clock.timed(PARTS[0], Module.optimizer_step)

    tokens = 8 * 256 * (steps + WARM_UP)
    often = [
        "trainer.log_every=10",
        f"trainer.validate_every={steps + WARM_UP}",
        f"trainer.checkpoint_every={10 * steps}",
    ]
    run = dsv2.load([*MODEL, *often, f"trainer.tokens={tokens}", "trainer.accelerator=cpu", "trainer.progress=false"])
    telemetry = patch.object(Recorder, "on_train_batch_end", clock.timed(PARTS[1], Recorder.on_train_batch_end))
    with telemetry, tempfile.TemporaryDirectory() as folder:
        fit(run, Path(folder), module=Timed)
    parts = dict(clock.counted)
    parts[PARTS[2]] = clock.whole - sum(parts.values())
    return {part: parts[part] / clock.whole for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prepare()
    found = shares(arguments.steps)
    table = Table(title=f"Shares of a training loop, {arguments.steps} steps, threads: {arguments.threads}")
    for column in ("part", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, share in found.items():
        table.add_row(part, f"{share:.1%}")
    Console().print(table)
    machine = {"processor": platform.processor() or platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    kept = vars(arguments) | {"machine": machine, "torch": torch.__version__}
    kept |= {"shares": {part: round(share, 4) for part, share in found.items()}}
    path = Path(__file__).parent / "results" / "loop.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
