"""`python -m dsv2 simulate pipeline`: schedules in time."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2.commands.machine import BYTES, PRECISION, add_machine, machine_of
from dsv2.config import ConfigError
from dsv2.report.terminal import add_row, open_console, open_table

if TYPE_CHECKING:
    from dsv2.distributed.hardware import GPU
    from dsv2.distributed.schedules import Schedule
    from dsv2.distributed.simulate import StageTimes, Timeline
    from dsv2.distributed.stages import StageCosts
    from dsv2.training.run import Run

TIMES = {"forward": "F", "backward": "B: gradients of inputs", "weight": "W: gradients of weights"}


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parse.add_argument("overrides", nargs="*", help="a model, as in model=v2; without, all stages are equal")
    parse.add_argument("--schedule", default="", metavar="A,B", help="names of schedules (default: all that apply)")
    parse.add_argument("--ranks", type=int, default=16, metavar="P", help="pipeline ranks (default 16)")
    parse.add_argument("--microbatches", type=int, default=64, metavar="M", help="per step (default 64)")
    parse.add_argument("--stages-per-rank", type=int, metavar="V", help="of interleaved schedules (default 2)")
    for name, words in TIMES.items():
        parse.add_argument(
            f"--{name}", type=float, metavar="T", help=f"{words}, of all a rank's layers (default 1, or the model's)"
        )
    parse.add_argument("--hop", type=float, metavar="T", help="from rank to rank (default 0, or the model's)")
    parse.add_argument(
        "--overlap", type=float, default=1.0, metavar="X",
        help="time of a forward and a backward that DualPipeV runs together, over the sum of theirs (default 1)",
    )  # fmt: skip
    parse.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the timelines")
    add_machine(parse)


def pipeline(arguments: argparse.Namespace) -> None:
    """Print one row per schedule, and draw the timelines."""
    from dsv2.commands.evaluate import require_writable
    from dsv2.distributed.schedules import SCHEDULES, build_schedule
    from dsv2.distributed.simulate import simulate
    from dsv2.training.run import load

    if arguments.figure is not None:
        require_writable(arguments.figure, "--figure")
    gpu = machine_of(arguments)
    run = load(arguments.overrides) if arguments.overrides else None
    tokens = arguments.sequences * arguments.context
    rows, timelines = list[dict[str, Any]](), dict[str, "Timeline"]()
    named = [word for word in arguments.schedule.split(",") if word]
    for name in named or SCHEDULES:
        definition = SCHEDULES.get(name)
        if not named and definition and definition.requires(arguments.ranks, arguments.microbatches):
            continue
        given = arguments.stages_per_rank if named or (definition and definition.stages_per_rank is None) else None
        schedule = build_schedule(name, arguments.ranks, arguments.microbatches, stages_per_rank=given)
        stages = None if run is None else _stages(run, schedule.num_stages, arguments.context)
        times, hop = _times(arguments, schedule, stages, gpu, tokens * BYTES * (0 if run is None else run.model.dim))
        timeline = simulate(schedule, times, hop=hop, overlap=arguments.overlap)
        timelines[name] = timeline
        share = 1 / schedule.stages_per_rank
        row = {
            "schedule": name,
            "stages": schedule.num_stages,
            "makespan": timeline.makespan,
            "work": sum(timeline.work) / schedule.num_ranks,
            "makespan_bubble": timeline.makespan_bubble,
            "makespan_bubble_share": timeline.bubble_share,
            "span_bubble": max(timeline.span_bubbles),
            "peak_microbatches": max(timeline.peaks([share] * schedule.num_stages)),
        }
        if stages is not None:
            row["peak_activation_bytes"] = max(timeline.peaks([tokens * stage.activations for stage in stages]))
        rows.append(row)
    unit = "seconds" if run is not None and arguments.forward is None else "units of the given times"
    if arguments.json:
        print(json.dumps({"unit": unit, "gpu": gpu.name, "schedules": rows}, indent=2))
    else:
        _print_schedules(arguments, rows, unit)
    if arguments.figure is not None:
        _draw(arguments, timelines, unit)


def _stages(run: "Run.Config", num_stages: int, context: int) -> "list[StageCosts]":
    from dsv2.distributed.stages import stages_of

    again = run.trainer.recompute_layers
    return stages_of(run.model, num_stages, context=context, precision=PRECISION, recompute_layers=again)


def _times(
    arguments: argparse.Namespace,
    schedule: "Schedule",
    stages: "list[StageCosts] | None",
    gpu: "GPU",
    sent: int,
) -> "tuple[list[StageTimes], float]":
    """Return the times of every stage and of a hop of `sent` bytes: the given ones, else the model's, else 1 and 0."""
    from dsv2.distributed.simulate import StageTimes

    given = [getattr(arguments, name) for name in TIMES]
    if any(value is not None for value in given) or stages is None:
        if stages is not None and None in given:
            raise ConfigError("forward", arguments.forward, "given together with --backward and --weight, or none")
        each = [(1.0 if value is None else value) / schedule.stages_per_rank for value in given]
        return [StageTimes(*each)] * schedule.num_stages, arguments.hop or 0.0
    rate = gpu.peak_flops * arguments.efficiency / (arguments.sequences * arguments.context)
    times = [
        StageTimes(stage.forward / rate, stage.backward_input / rate, stage.backward_weight / rate) for stage in stages
    ]
    return times, gpu.latency + sent / gpu.network if arguments.hop is None else arguments.hop


def _print_schedules(arguments: argparse.Namespace, rows: list[dict[str, Any]], unit: str) -> None:
    console = open_console()
    title = f"{arguments.ranks} ranks, {arguments.microbatches} micro-batches, in {unit}"
    columns = ["schedule", "stages", "makespan", "bubble of makespan", "share", "bubble of span", "peak micro-batches"]
    in_bytes = "peak_activation_bytes" in rows[0]
    table = open_table([*columns, *(["peak activations"] if in_bytes else [])], title=title)
    for row in rows:
        cells = [row["schedule"], str(row["stages"]), f"{row['makespan']:.4g}", f"{row['makespan_bubble']:.4g}"]
        cells += [f"{row['makespan_bubble_share']:.1%}", f"{row['span_bubble']:.4g}", f"{row['peak_microbatches']:.4g}"]
        add_row(table, [*cells, *([f"{row['peak_activation_bytes'] / 1e9:,.1f} GB"] if in_bytes else [])])
    console.print(table)
    console.print(
        "Bubble of makespan: from the first action of any rank to the last of any, minus the mean work of a rank; the "
        "cost of a step with a barrier, such as clipping by the global norm.\n"
        "Bubble of span: from a rank's first action to its last, minus its work, of the worst rank; the cost of a step "
        "without a barrier.\n"
        "Peaks are of the rank that holds most. A peak of micro-batches counts all of a rank's layers as one.",
        soft_wrap=True,
    )


def _draw(arguments: argparse.Namespace, timelines: "dict[str, Timeline]", unit: str) -> None:
    import pandas as pd

    from dsv2 import plots
    from dsv2.distributed.simulate import Event
    from dsv2.report.pictures import picture
    from dsv2.storage.files import replacing

    tables = [
        pd.DataFrame(timeline.events, columns=list(Event._fields)).assign(schedule=f"{name}: bubble {_of(timeline)}")
        for name, timeline in timelines.items()
    ]
    drawn = plots.pipeline_timeline(pd.concat(tables), unit=unit)
    with replacing(arguments.figure) as scratch:
        scratch.write_bytes(picture(arguments.figure.stem, "", drawn).png)


def _of(timeline: "Timeline") -> str:
    return f"{timeline.makespan_bubble:.3g} of the makespan, {max(timeline.span_bubbles):.3g} of the worst rank's span"
