"""`python -m dsv2 simulate hours`: what published GPU hours imply, and what another number of GPUs would take."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsv2.commands.machine import add_machine, machine_of
from dsv2.config import ConfigError
from dsv2.report.terminal import add_row, open_console, open_table

if TYPE_CHECKING:
    from dsv2.distributed.hours import HourShares, Layout

MODEL = "model=v2"
TRILLION = 1e12
SHARES = {
    "model_flops": "the model's FLOPs at the GPU's peak (MFU)",
    "recomputation": "forwards that run again, at the peak",
    "kernels": "kernels below the peak, and all that is not simulated",
    "all_to_all": "all-to-all that shared experts do not hide",
    "bubble": "pipeline bubble and uneven stages",
}


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parse.add_argument("overrides", nargs="*", help=f"a model (default {MODEL})")
    parse.add_argument(
        "--hours", type=float, default=172.8e3, metavar="H",
        help="GPU hours per trillion tokens, as published (default 172800: DeepSeek-V2, section 3.2.3)",
    )  # fmt: skip
    parse.add_argument("--gpus", type=int, default=2048, metavar="N", help="that took them (default 2048, a guess)")
    parse.add_argument("--schedule", default="zbv", metavar="NAME", help="of the pipeline (default zbv)")
    parse.add_argument("--ranks", type=int, default=16, metavar="P", help="of the pipeline (default 16)")
    parse.add_argument("--batch", type=int, default=9216, metavar="N", help="sequences per step (default 9216)")
    parse.add_argument(
        "--on", default="512,1024,4096", metavar="N,N", help="other numbers of GPUs (default 512,1024,4096)"
    )
    parse.add_argument("--tokens", type=float, default=8.1e12, metavar="N", help="to train on (default 8.1e12)")
    add_machine(parse, efficiency=False)


def hours(arguments: argparse.Namespace) -> None:
    """Print what the hours went to, and hours and days on other numbers of GPUs with equally fast kernels."""
    from dataclasses import replace

    from dsv2.distributed.hours import ClusterRun, Layout
    from dsv2.training.run import load

    gpu = machine_of(arguments)
    run = load(arguments.overrides or [MODEL])
    layout = Layout(
        gpus=arguments.gpus, schedule=arguments.schedule, ranks=arguments.ranks, batch=arguments.batch,
        sequences=arguments.sequences, context=arguments.context, recompute_layers=run.trainer.recompute_layers,
    )  # fmt: skip
    runs = [ClusterRun(run.model, replace(layout, gpus=gpus), gpu) for gpus in (layout.gpus, *_numbers(arguments.on))]
    implied = runs[0].implied(TRILLION, arguments.hours)
    taken = [(run.layout, run.hours(arguments.tokens, implied.efficiency)) for run in runs]
    if arguments.json:
        rows = [{"gpus": of.gpus, "microbatches": of.microbatches, **shares._asdict()} for of, shares in taken]
        print(json.dumps({"gpu": gpu.name, "implied": implied._asdict(), "on": rows}, indent=2))
        return
    console = open_console()
    title = f"{arguments.hours:,.0f} hours of {gpu.name} per trillion tokens, if {_words(layout)}"
    table = open_table(["GPU hours went to", "share", "hours"], title=title)
    for name, words in SHARES.items():
        share = getattr(implied, name)
        add_row(table, [words, f"{share:.1%}", f"{share * arguments.hours:,.0f}"])
    console.print(table)
    console.print(f"Kernels run at {implied.efficiency:.1%} of the peak.\n", soft_wrap=True)
    console.print(_times(taken, arguments.tokens))


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise ConfigError("on", text, "whole numbers of GPUs, as in 512,1024") from None


def _words(layout: "Layout") -> str:
    return (
        f"{layout.gpus:,} GPUs ran {layout.schedule} on {layout.ranks} ranks with {layout.microbatches} micro-batches"
    )


def _times(taken: "Sequence[tuple[Layout, HourShares]]", tokens: float) -> object:
    title = f"{tokens:g} tokens with kernels as fast as these"
    columns = ["GPUs", "micro-batches", "bubble", "all-to-all", "MFU", "GPU hours", "days"]
    table = open_table(columns, title=title)
    for layout, shares in sorted(taken, key=lambda row: row[0].gpus):
        cells = [f"{layout.gpus:,}", str(layout.microbatches)]
        cells += [f"{share:.1%}" for share in (shares.bubble, shares.all_to_all, shares.model_flops)]
        add_row(table, [*cells, f"{shares.gpu_hours:,.0f}", f"{shares.gpu_hours / layout.gpus / 24:.1f}"])
    return table
