"""`python -m dsv2 account`: the cost of a model, computed from its config alone, as tables or JSON."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv2.config import ConfigError
from dsv2.report.terminal import add_row, open_console, open_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dsv2.accounting.account import Account
    from dsv2.accounting.cost import Cost
    from dsv2.accounting.deployed import CacheBytes
    from dsv2.accounting.memory import Memory
    from dsv2.accounting.traffic import Traffic
    from dsv2.models.transformer import Transformer


def add_arguments(parse: argparse.ArgumentParser, path: Callable[[str], Path] = Path) -> None:
    """Declare the arguments; `path` makes a path of a word, or refuses it."""
    parse.add_argument("overrides", nargs="*", help="as in model=v2 model/attention=mha")
    parse.add_argument("--hf", type=path, metavar="PATH", help="a Hugging Face config.json, or its folder")
    parse.add_argument("--run", metavar="RUN", help="a trained run or an imported model", dest="stored")
    parse.add_argument("--context", type=int, default=4096, help="tokens per sequence (default 4096)")
    parse.add_argument("--kv-bits", type=float, default=16, help="bits per cached element (default 16)")
    parse.add_argument("--batch", type=int, default=1, help="sequences, for the activations (default 1)")
    parse.add_argument("--mfu", type=float, help="model FLOPs utilisation, 0 to 1; with --tokens gives GPU hours")
    parse.add_argument("--tokens", type=float, help="training tokens, as in 8.1e12")
    parse.add_argument("--gpu-peak", type=float, metavar="FLOPS", help="FLOPs per second (default 989e12, an H800)")
    parse.add_argument("--gpu-price", type=float, metavar="PRICE", help="per GPU hour, in any currency")
    parse.add_argument(
        "--published", action="store_true", help="compare all published figures with ours, instead of one model"
    )
    parse.add_argument("--json", action="store_true", help="machine-readable")


def account_command(arguments: argparse.Namespace) -> None:
    """Print one model's account, or the published figures. Imports late, to keep other commands fast."""
    if arguments.published:
        if arguments.overrides or arguments.hf is not None or arguments.stored is not None:
            valid = "without overrides, --hf and --run, since each figure has its own model"
            raise ConfigError("published", True, valid)
        from dsv2.commands.published import print_published

        print_published(as_json=arguments.json)
        return
    from dsv2.accounting.account import account
    from dsv2.accounting.deployed import cache_bytes, weight_bytes
    from dsv2.accounting.memory import training_memory
    from dsv2.accounting.positions import positions_of
    from dsv2.accounting.traffic import all_to_all

    model, precision, recompute_layers = _model(arguments)
    result = account(model, context=arguments.context, kv_bits=arguments.kv_bits)
    size = {"batch": arguments.batch, "length": arguments.context}
    memory = training_memory(model, **size, precision=precision, recompute_layers=recompute_layers)
    traffic, cost, positions = all_to_all(model), _cost(arguments, result.flops_per_token), positions_of(model)
    caches, weights = cache_bytes(model), weight_bytes(model)
    if arguments.json:
        more = {
            "caches": [row._asdict() for row in caches],
            "weight_bytes": weights,
            "memory": memory.as_dict() | {"precision": precision},
            "traffic": traffic and traffic._asdict(),
            "cost": cost and cost._asdict(),
            "positions": positions.as_dict(),
        }
        print(json.dumps(result.as_dict() | more, indent=2))
        return
    console = open_console()
    console.print(_items(result, model))
    console.print(
        f"{_amount(result.total_params)} parameters, {_amount(result.active_params)} active per token "
        f"({_amount(result.active_params_without_embedding)} without the input embedding)\n"
        f"KV cache: {result.kv_elements_per_token:,} elements per token, "
        f"{result.kv_bytes_per_token:,.0f} bytes at {result.kv_bits:g} bits\n"
        f"{positions.text()}",
    )
    console.print()
    console.print(_caches(caches, result.kv_elements_per_token))
    console.print("Weights: " + ", ".join(f"{size:,} bytes in {name}" for name, size in weights.items()) + "\n")
    console.print(_memory(memory, f"Training memory, {arguments.batch} x {arguments.context} tokens in {precision}"))
    _print_traffic(console, traffic)
    _print_cost(console, cost, arguments)


def _amount(parameters: int) -> str:
    """Format a number of parameters in billions or millions, with two decimals."""
    unit, size = ("B", 1e9) if parameters >= 1e9 else ("M", 1e6)
    return f"{parameters / size:.2f}{unit}"


def _model(arguments: argparse.Namespace) -> "tuple[Transformer.Config, str, int]":
    """Return the model, the precision that it is trained in, and how many of its layers are computed again."""
    for name, given in (("hf", arguments.hf), ("run", arguments.stored)):
        if given is not None and arguments.overrides:
            raise ConfigError("overrides", " ".join(arguments.overrides), f"none together with --{name}")
    if arguments.hf is not None:
        if arguments.stored is not None:
            raise ConfigError("run", arguments.stored, "not together with --hf")
        from dsv2.interop.hf_config import read_config

        return read_config(arguments.hf), "fp32", 0
    if arguments.stored is not None:
        from dsv2.training.saved import open_run

        opened = open_run(arguments.stored)
        if opened.imported:
            return opened.model_config, "fp32", 0
        run = opened.config
    else:
        from dsv2.training.run import load

        run = load(arguments.overrides)
    return run.model, run.trainer.precision, run.trainer.recompute_layers


def _cost(arguments: argparse.Namespace, flops_per_token: int) -> "Cost | None":
    """Return the GPU hours if utilisation and tokens are given, else None. Raises ConfigError for only one of them."""
    given = {name: getattr(arguments, name) for name in ("mfu", "tokens", "gpu_peak", "gpu_price")}
    if all(value is None for value in given.values()):
        return None
    from dsv2.accounting.cost import H800_PEAK, training_cost

    for name in ("mfu", "tokens"):
        if given[name] is None:
            raise ConfigError(name, None, "GPU hours need both --mfu and --tokens")
    peak = H800_PEAK if given["gpu_peak"] is None else given["gpu_peak"]
    return training_cost(flops_per_token, given["tokens"], given["mfu"], peak, given["gpu_price"] or 0.0)


def _items(result: "Account", model: "Transformer.Config") -> "Table":
    title = f"Forward and backward FLOPs at a context of {result.context} tokens"
    table = open_table(["part", "layers", "parameters", "active per token", "FLOPs per token"], title=title)
    for item in result.items:
        numbers = (item.total_params, item.active_params, item.flops_per_token)
        add_row(table, [item.part, str(item.layers), *(f"{number:,}" for number in numbers)])
    table.add_section()
    sums = (result.total_params, result.active_params, result.flops_per_token)
    add_row(table, ["total", str(model.num_layers), *(f"{number:,}" for number in sums)], style="bold")
    return table


def _caches(caches: Sequence["CacheBytes"], elements: int) -> "Table":
    title = "KV cache as `generate --kv-bits` holds it, with scales and offsets"
    table = open_table(["bits", "bytes per token", "average bits", "of 16 bits"], title=title)
    for row in caches:
        share = f"{row.bytes_per_token / (2 * elements):.1%}"
        add_row(table, [str(row.bits), f"{row.bytes_per_token:,}", f"{row.average_bits:.2f}", share])
    return table


def _memory(memory: "Memory", title: str) -> "Table":
    table = open_table(["stored", "layers", "bytes", "bytes per token"], title=title)
    states = {"weights": memory.weights, "gradients": memory.gradients, "AdamW moments": memory.optimizer}
    for name, size in states.items():
        add_row(table, [name, "", f"{size:,}", ""])
    table.add_section()
    for item in memory.activations:
        per_token = f"{item.bytes / memory.tokens:,.0f}"
        add_row(table, [f"activations: {item.part}", str(item.layers), f"{item.bytes:,}", per_token])
    table.add_section()
    per_token = f"{memory.activation_bytes_per_token:,.0f}"
    add_row(table, ["activations", "", f"{memory.activation_bytes:,}", per_token], style="bold")
    add_row(table, ["total", "", f"{memory.total:,}", ""], style="bold")
    return table


def _print_traffic(console: "Console", traffic: "Traffic | None") -> None:
    if traffic is None:
        return
    if traffic.num_devices == 1:
        console.print("All-to-all: none, all experts are on one device (model.ffn.num_devices)")
        return
    title = f"All-to-all of one MoE layer over {traffic.num_devices} devices, random router, bfloat16, 4 transfers"
    table = open_table(["a token is sent", "sends per token", "bytes per token"], title=title)
    add_row(table, ["once per pair", str(traffic.top_k), f"{traffic.bytes_by_pair:,.0f}"])
    add_row(table, ["once per device", f"{traffic.devices:.2f}", f"{traffic.bytes_by_device:,.0f}"])
    if traffic.max_devices is not None:
        limited = f"once per device, at most {traffic.max_devices}"
        add_row(table, [limited, f"{traffic.devices_limited:.2f}", f"{traffic.bytes_by_device_limited:,.0f}"])
    console.print(table)


def _print_cost(console: "Console", cost: "Cost | None", arguments: argparse.Namespace) -> None:
    if cost is None:
        return
    price = "" if arguments.gpu_price is None else f", at {arguments.gpu_price:g} per hour {cost.price:,.0f}"
    console.print(
        f"Training on {arguments.tokens:g} tokens: {cost.flops:.3g} FLOPs, {cost.gpu_hours:,.0f} GPU hours "
        f"at {arguments.mfu:.1%} of the peak{price}",
    )
