"""`python -m dsv2 simulate traffic`: the all-to-all and the slowest device, from routings of a run or random ones."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2.commands.machine import BYTES, add_machine, machine_of
from dsv2.config import ConfigError
from dsv2.report.terminal import add_row, open_console, open_table

if TYPE_CHECKING:
    from dsv2.distributed.traffic import Choices, LayerCosts
    from dsv2.models.moe import MoE
    from dsv2.models.transformer import Transformer

SENDS = {"once per pair": False, "once per device": True}


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parse.add_argument("overrides", nargs="*", help="the model's size, as in model=v2 (default: that of --run)")
    source = parse.add_mutually_exclusive_group()
    source.add_argument("--run", metavar="RUN", dest="stored", help="route as this run routes its held-out text")
    source.add_argument("--traces", type=Path, metavar="DIR", help="... or as these routing traces say")
    parse.add_argument("--devices", type=int, metavar="D", help="with equal groups of experts (default: the model's)")
    parse.add_argument(
        "--skew", type=float, metavar="S", help="of a random router: how unequal experts are (default 0)"
    )
    parse.add_argument("--seed", type=int, metavar="N", help="of a random router (default 0)")
    parse.add_argument("--capacity", default="1.0", metavar="C,C", help="capacity factors to drop to (default 1.0)")
    parse.add_argument("--figure", type=Path, metavar="FILE.png", help="draw where the time goes")
    add_machine(parse)


def traffic(arguments: argparse.Namespace) -> None:
    """Print one row per way of sending and capacity factor, averaged over MoE layers and micro-batches."""
    from dsv2.accounting.traffic import expected_devices
    from dsv2.commands.evaluate import require_writable
    from dsv2.distributed.traffic import Experts, LayerCosts, balanced, layer_costs, place, useful_throughput

    if arguments.figure is not None:
        require_writable(arguments.figure, "--figure")
    gpu = machine_of(arguments)
    capacities = [None, *_factors(arguments.capacity)]
    model, moe = _model(arguments)
    num_devices = moe.num_devices if arguments.devices is None else arguments.devices
    _require_devices(moe, num_devices)
    experts = Experts(model.dim, moe.expert_dim, moe.num_shared, BYTES)
    costs: dict[tuple[str, float | None], list[LayerCosts]] = {}
    even: dict[str, list[LayerCosts]] = {}
    devices_per_token, num_tokens = list[float](), 0
    for choices in _choices(arguments, moe, num_devices):
        placed = [place(choices, moe.num_experts, num_devices, capacity_factor=factor) for factor in capacities]
        devices_per_token.append(placed[0].devices_per_token)
        num_tokens = placed[0].num_tokens
        for words, once in SENDS.items():
            given: dict[str, Any] = {"once_per_device": once, "efficiency": arguments.efficiency}
            even.setdefault(words, []).append(layer_costs(balanced(placed[0]), experts, gpu, **given))
            for factor, of_factor in zip(capacities, placed, strict=True):
                costs.setdefault((words, factor), []).append(layer_costs(of_factor, experts, gpu, **given))
    rows = []
    for (words, factor), layers in costs.items():
        mean, ideal = _mean(layers), _mean(even[words])
        sums = {"exposed": mean.exposed, "total": mean.total, "useful": useful_throughput(mean, ideal)}
        rows.append({"sent": words, "capacity": factor, **mean._asdict(), **sums})
    summary = {
        "gpu": gpu.name,
        "devices": num_devices,
        "tokens": num_tokens,
        "devices_per_token": sum(devices_per_token) / len(devices_per_token),
        "devices_per_token_random": expected_devices(moe.num_experts, moe.top_k, num_devices, _limit(moe, num_devices)),
        "rows": rows,
    }
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary)
    if arguments.figure is not None:
        _draw(arguments.figure, rows)


def _limit(moe: "MoE.Config", num_devices: int) -> int | None:
    """Return the model's M, if the devices are the model's."""
    return moe.max_devices if num_devices == moe.num_devices else None


def _factors(text: str) -> list[float]:
    try:
        factors = [float(word) for word in text.split(",") if word]
    except ValueError:
        raise ConfigError("capacity", text, "numbers, as in 1.0,1.25") from None
    if not all(0 < factor < float("inf") for factor in factors):
        raise ConfigError("capacity", text, "positive and finite")
    return factors


def _model(arguments: argparse.Namespace) -> "tuple[Transformer.Config, MoE.Config]":
    """Return the model whose size counts, and its MoE layers, which fit the routing that is read."""
    from dsv2.training.run import load
    from dsv2.training.saved import open_run

    if arguments.traces is not None and not arguments.overrides:
        raise ConfigError("traces", str(arguments.traces), "together with a model, whose size traces do not state")
    stored = None if arguments.stored is None else open_run(arguments.stored).model_config
    model = stored if stored is not None and not arguments.overrides else load(arguments.overrides).model
    if model.moe is None:
        raise ConfigError("model.ffn", type(model.ffn).__qualname__, "one with MoE layers, as model/ffn=moe")
    moe = model.moe
    if stored is not None:
        theirs = (stored.moe.num_experts, stored.moe.top_k) if stored.moe is not None else (0, 0)
        _require_equal(moe, *theirs, f"of the run {arguments.stored}")
    for name, value in (("skew", arguments.skew), ("seed", arguments.seed)):
        if value is not None and (arguments.stored or arguments.traces):
            raise ConfigError(name, value, "not together with --run or --traces")
    return model, moe


def _require_equal(moe: "MoE.Config", num_experts: int, top_k: int, whose: str) -> None:
    if (moe.num_experts, moe.top_k) != (num_experts, top_k):
        ours, theirs = f"{moe.top_k} of {moe.num_experts} experts", f"{top_k} of {num_experts} experts"
        raise ConfigError("model.ffn", ours, f"{theirs}, as in the routing {whose}")


def _require_devices(moe: "MoE.Config", num_devices: int) -> None:
    if num_devices < 2 or moe.num_experts % num_devices:
        raise ConfigError("devices", num_devices, f"2 or more, a divisor of the {moe.num_experts} experts")


def _choices(arguments: argparse.Namespace, moe: "MoE.Config", num_devices: int) -> "Iterator[Choices]":
    """Yield the routing of every micro-batch of every layer."""
    wanted = num_devices * arguments.sequences * arguments.context
    if arguments.stored is not None:
        yield from _of_run(arguments.stored, wanted, num_devices)
    elif arguments.traces is not None:
        yield from _of_traces(arguments.traces, moe, wanted, num_devices)
    else:
        from dsv2.distributed.traffic import random_choices

        yield random_choices(
            wanted, moe.num_experts, moe.top_k, num_devices=num_devices, max_devices=_limit(moe, num_devices),
            skew=arguments.skew or 0.0, seed=arguments.seed or 0,
        )  # fmt: skip


def _of_run(run: str, wanted: int, num_devices: int) -> "Iterator[Choices]":
    import torch
    from tqdm.auto import tqdm

    from dsv2.distributed.traffic import Choices
    from dsv2.routing.observed import observe
    from dsv2.training.saved import open_run

    opened = open_run(run)
    total = len(opened.validation.inputs)
    with tqdm(total=total, desc="routing", unit="sequence", disable=None, file=sys.stderr, leave=False) as bar:
        seen = observe(opened.model, opened.validation, batch_size=opened.batch_size, seen=bar.update)
    for experts, scores in zip(seen.experts, seen.gates, strict=True):
        flat = experts.reshape(-1, experts.shape[-1]), scores.reshape(-1, experts.shape[-1])
        for first, last in _cuts(len(flat[0]), wanted, num_devices):
            yield Choices(torch.from_numpy(flat[0][first:last]).long(), torch.from_numpy(flat[1][first:last]))


def _of_traces(folder: Path, moe: "MoE.Config", wanted: int, num_devices: int) -> "Iterator[Choices]":
    import torch

    from dsv2.distributed.traffic import Choices
    from dsv2.routing.traces import open_traces

    if not folder.is_dir():
        raise ConfigError("traces", str(folder), "a folder with samples/ and actives/")
    traces = open_traces(folder, num_experts=moe.num_experts)
    _require_equal(moe, traces.num_experts, traces.top_k, f"of {folder}")
    size = _cuts(traces.num_tokens, wanted, num_devices)[0][1]
    for layer in traces.layers:
        for _, choices in traces.blocks(layer, size):
            experts, scores = (torch.from_numpy(part.copy()) for part in choices[-1])
            if len(experts) == size:
                yield Choices(experts.long(), scores.float())


def _cuts(num_tokens: int, wanted: int, num_devices: int) -> list[tuple[int, int]]:
    """Return first and last of every micro-batch of `wanted` tokens, or of all there are, if these are fewer."""
    size = min(wanted, num_tokens // num_devices * num_devices)
    if not size:
        raise ConfigError("devices", num_devices, f"at most the number of tokens, {num_tokens}")
    return [(first, first + size) for first in range(0, num_tokens - size + 1, size)]


def _mean(costs: "Sequence[LayerCosts]") -> "LayerCosts":
    return type(costs[0])(*(sum(column) / len(column) for column in zip(*costs, strict=True)))


def _show(summary: dict[str, Any]) -> None:
    console = open_console()
    title = (
        f"One MoE layer, forward and backward of {summary['tokens']:,} tokens on {summary['devices']} devices "
        f"({summary['gpu']}), in milliseconds"
    )
    times = ("all_to_all", "hidden", "exposed", "shared", "experts", "straggler", "total")
    columns = ["sent", "capacity", "kB per token", *(name.replace("_", "-") for name in times), "kept", "useful"]
    table = open_table(columns, title=title)
    for row in summary["rows"]:
        cells = [row["sent"], "-" if row["capacity"] is None else f"{row['capacity']:g}"]
        cells += [f"{row['bytes_per_token'] / 1e3:.1f}", *(f"{row[name] * 1e3:.3g}" for name in times)]
        add_row(table, [*cells, f"{row['kept']:.1%}", f"{row['useful']:.1%}"])
    console.print(table)
    console.print(
        f"A token reaches {summary['devices_per_token']:.2f} devices; with a random router "
        f"{summary['devices_per_token_random']:.2f}.\n"
        "total = shared + exposed + experts + straggler. Hidden: the part of the all-to-all that shared experts cover. "
        "Straggler: what the busiest device takes more than the mean. Useful: pairs computed per second, relative to "
        "the same routing, sent the same way, spread evenly and without drops.",
        soft_wrap=True,
    )


def _draw(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pandas as pd

    from dsv2 import plots
    from dsv2.report.pictures import picture
    from dsv2.storage.files import replacing

    with replacing(path) as scratch:
        scratch.write_bytes(picture(path.stem, "", plots.layer_times(pd.DataFrame(rows))).png)
