"""Training and decoding on a CPU in one table, in under 10 minutes, beside targets and the last stored ratios.

    python -m benchmarks.bench [--rounds 7] [--check]

Takes the training step of four models against the best of Hugging Face's four settings, its memory, the MoE layer
against a dense FFN of equal FLOPs, the share of a step that telemetry and loop take, and decoding against Hugging Face.
Writes
`benchmarks/results/bench/<date>.json`. With `--check`, the exit status is 1 if a ratio is worse by more than 15% than
in the latest file of another date; times are not compared, since they are the machine's.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import decode, loop, moe_layer, training_step
from dsv2.training.machine import prepare

RESULTS = Path(__file__).parent / "results" / "bench"
THREADS, STEPS, DECODE_ROUNDS = 2, 150, 5
WORSE = 1.15  # factor by which a ratio may be worse than the stored one
STEP_TARGETS = {"A": 1.45, "C": 1.5, "D": 1.2, "E": 1.4}  # times the best peer's tokens per second
MEMORY_TARGET, LAYER_TARGET, LOOP_TARGET = 0.75, 1.25, 0.03


class Row(NamedTuple):
    """A ratio with its target, which it should be above if `higher`, else below."""

    what: str
    ratio: float
    target: float
    higher: bool
    spread: tuple[float, float] | None = None  # the middle half
    ours: str = ""
    peer: str = ""
    limit: str = ""  # share of the matmul rate

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.higher else self.ratio <= self.target

    def worse_than(self, other: float) -> bool:
        return self.ratio * WORSE < other if self.higher else self.ratio > other * WORSE


def training_steps(rounds: int) -> Iterator[Row]:
    for name, target in STEP_TARGETS.items():
        result = training_step.measure(name, rounds, THREADS)
        sides = {row["side"]: row for row in result["sides"]}
        ours, peer = sides[training_step.title(("cpu",))], sides[result["best_peer"]]
        low, high = ours["ratio_middle_half"]
        yield Row(
            f"training step, {name}",
            ours["ratio"],
            target,
            higher=True,
            spread=(low, high),
            ours=f"{ours['tokens_per_s']:,} tokens/s",
            peer=f"{peer['tokens_per_s']:,} tokens/s",
            limit=f"{ours['share_of_peak']:.0%}",
        )
        mine, theirs = ours["peak_memory_mb"], peer["peak_memory_mb"]
        sizes = [f"{size:,} MB" for size in (mine, theirs)]
        yield Row(f"its memory, {name}", mine / theirs, MEMORY_TARGET, False, ours=sizes[0], peer=sizes[1])


def moe_layers(rounds: int) -> Iterator[Row]:
    for num_experts in (8, 16, 64):
        for row in moe_layer.measure(num_experts, rounds):
            if row["kernels"] == "cpu":
                what = f"MoE layer / dense FFN, {num_experts} experts, {row['load']} load"
                yield Row(what, row["ratio"], LAYER_TARGET, False, tuple(row["middle_half"]))


def overhead() -> Iterator[Row]:
    for part, share in loop.shares(STEPS).items():
        if part != loop.PARTS[0]:
            yield Row(f"share of a step, {part}", share, LOOP_TARGET, False)


def decoding(rounds: int) -> Iterator[Row]:
    batches, contexts = (sorted(set(sizes)) for sizes in zip(*decode.TARGETS, strict=True))
    for cell in decode.cells(batches, contexts, rounds, (decode.MLA,)):
        ours, peer = f"{cell.ms[decode.MLA]:.2f} ms", f"{cell.peer_ms:,.1f} ms"
        what, target = f"decoding, {cell.batch} x {cell.context:,}", decode.TARGETS[cell.batch, cell.context]
        yield Row(what, cell.ratio, target, True, cell.middle_half, ours, peer)


def latest(date: str) -> dict[str, float]:
    """Return the ratios of the latest stored file of another date; empty if there is none."""
    files = sorted(path for path in RESULTS.glob("*.json") if path.stem != date)
    return {row["what"]: row["ratio"] for row in json.loads(files[-1].read_text())["rows"]} if files else {}


def print_table(rows: list[Row], stored: dict[str, float]) -> None:
    table = Table(title=f"{THREADS} threads, float32; peers: the fastest of Hugging Face's settings")
    for column in ("", "ours", "peer", "of matmul", "ratio", "middle half", "target", "stored"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        spread = f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else ""
        target = f"{'≥' if row.higher else '≤'} {row.target:g}{'' if row.met else ' missed'}"
        last = f"{stored[row.what]:.2f}" if row.what in stored else ""
        table.add_row(row.what, row.ours, row.peer, row.limit, f"{row.ratio:.2f}", spread, target, last)
    Console(width=160).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="fail if a ratio is worse than in the last stored table")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    prepare()
    rows = [*training_steps(arguments.rounds), *moe_layers(3 * arguments.rounds), *overhead(), *decoding(DECODE_ROUNDS)]
    date = datetime.now(UTC).date().isoformat()
    stored = latest(date)
    print_table(rows, stored)
    kept: dict[str, Any] = {
        "date": date,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        "threads": THREADS,
        "rounds": arguments.rounds,
        "rows": [row._asdict() for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{date}.json").write_text(json.dumps(kept, indent=1) + "\n")
    worse = [row.what for row in rows if row.what in stored and row.worse_than(stored[row.what])]
    for what in worse if arguments.check else ():
        print(f"worse than stored: {what}", file=sys.stderr)
    return 1 if arguments.check and worse else 0


if __name__ == "__main__":
    sys.exit(main())
