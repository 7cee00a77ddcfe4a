"""`python -m dsv2 analyse --traces DIR` and `export-traces RUN OUT`: routing traces in FLAME-MoE's layout."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv2.config import ConfigError

OPTIONS: dict[str, tuple[type, str, str]] = {  # type, metavar, help
    "experts": (int, "E", "routed experts per layer (default: what the traces state, else the largest index plus 1)"),
    "devices": (int, "D", "devices with equal groups of experts (default 1)"),
    "max_devices": (int, "M", "most devices per token (default: no limit)"),
    "capacity": (float, "C", "capacity factor of a device (default 1.0)"),
    "batch_tokens": (int, "N", "consecutive tokens that share a device's budget (default 65536)"),
    "dim": (int, "d", "width of the model, for bytes"),
}


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """Declare the options of `analyse` that go with --traces."""
    group = parse.add_argument_group("with --traces")
    for name, (kind, metavar, help_) in OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=help_)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given. Raises ConfigError for one that does not go with RUN, or with --traces."""
    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    if arguments.traces is None and given:
        name, value = next(iter(given.items()))
        raise ConfigError(name.replace("_", "-"), value, "only together with --traces")
    for name in ("against", "text"):
        if arguments.traces is not None and (value := getattr(arguments, name)):
            raise ConfigError(name, value, "only together with RUN; traces have a text of their own")
    return given


def analyse_traces(
    folder: Path,
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
    experts: int | None = None,
    devices: int = 1,
    max_devices: int | None = None,
    capacity: float = 1.0,
    batch_tokens: int | None = None,
    dim: int | None = None,
) -> tuple[Path | None, list[str]]:
    """Run all analyses of routing traces that apply, or those named in `only`; print tables and write the page.

    Options and errors are those of the command line, `out` and what is returned those of `analyse`. Memory does not
    depend on the number of rows. Raises ValueError, before anything is written, for traces that are not whole.
    """
    from tqdm.auto import tqdm

    from dsv2.commands.analyse import folder_name, perform, require_known
    from dsv2.report.traces import ANALYSES, TracedRun, needs
    from dsv2.routing.tallies import Placement, tally
    from dsv2.routing.traces import ROWS, open_traces
    from dsv2.storage.files import require_folder

    require_known(only, ANALYSES)
    given = {"experts": experts, "devices": devices, "max-devices": max_devices, "capacity": capacity}
    given |= {"batch-tokens": batch_tokens, "dim": dim}
    default = {"devices": 1, "capacity": 1.0}
    chosen = [f"{name}={value}" for name, value in given.items() if value != default.get(name)]
    if not folder.is_dir():
        raise ConfigError("traces", str(folder), "a folder with samples/ and actives/")
    target = out or folder / folder_name([*only, *chosen])
    require_folder("--out", target)
    traces = open_traces(folder, num_experts=experts)
    _require_sizes(traces.num_experts, traces.top_k, devices, max_devices)
    for name, value in (("batch-tokens", batch_tokens), ("dim", dim)):
        if value is not None and value < 1:
            raise ConfigError(name, value, "1 or more")
    if not 0 < capacity < math.inf:
        raise ConfigError("capacity", capacity, "positive and finite")
    placement = Placement(devices, max_devices, capacity, min(batch_tokens or ROWS, traces.num_tokens))
    rows = traces.num_tokens * len(traces.actives)
    bar = tqdm(total=rows, desc="traces", unit="row", unit_scale=True, disable=None, file=sys.stderr, leave=False)
    with bar:
        tallies = tally(traces, placement, **needs(only or ANALYSES), seen=bar.update)
    name = folder.resolve().name
    run = TracedRun(name, traces, placement, tallies, dim)
    steps = f"after step {traces.steps[0]}"
    if len(traces.steps) > 1:
        steps = f"after {len(traces.steps)} steps from {traces.steps[0]} to {traces.steps[-1]}"
    headline = (
        f"Traces {name}: {traces.num_tokens:,} tokens, {steps}, {len(traces.layers)} MoE layers, "
        f"{traces.top_k} of {traces.num_experts} experts per token."
    )
    return perform(ANALYSES, only, run, target, f"Routing traces of {name}", headline)


def _require_sizes(num_experts: int, top_k: int, num_devices: int, max_devices: int | None) -> None:
    """Raise ConfigError, in the words of the command line, unless the experts fit the devices."""
    from dsv2.models.moe.router import routing_rules

    words = {"num_experts": "experts", "num_devices": "devices", "max_devices": "max-devices"}
    for field, value, valid, holds in routing_rules(num_experts, top_k, num_devices, max_devices):
        if not holds:
            for ours, theirs in words.items():
                valid = valid.replace(f"{ours}=", f"{theirs}=")
            raise ConfigError(words.get(field, field), value, valid)


def export_traces(run: str | Path, out: str | Path, *, text: Sequence[str] = ()) -> None:
    """Write how a run routes its validation text after each step whose checkpoint was kept, as the directory `out`.

    An imported model counts as step 0. `text` selects other text (see `open_run`). The directory is written whole or
    not at all. Raises ValueError if `out` exists, and for a run without experts, weights or text.
    """
    from tqdm.auto import tqdm

    from dsv2.routing.observed import passes
    from dsv2.routing.recording import write_samples, write_step
    from dsv2.storage.files import new_directory, require_free
    from dsv2.storage.rundir import CHECKPOINTS
    from dsv2.storage.weights import how_to_train
    from dsv2.training.saved import open_run

    require_free(Path(out))
    opened = open_run(run, text=text)
    moe = opened.model_config.moe
    if moe is None:
        raise ValueError(f"{opened.folder}: a dense model has no routing; traces need a run with model/ffn=moe")
    steps: list[int | None] = [None] if opened.imported else [*opened.steps]
    if not steps:
        raise ValueError(
            f"{opened.folder}: no valid checkpoint in {opened.folder / CHECKPOINTS}; {how_to_train(opened.folder)}"
        )
    validation, layers = opened.validation, list(opened.model_config.moe_layers)
    total = len(steps) * validation.inputs.numel()
    bar = tqdm(total=total, desc="traces", unit="token", unit_scale=True, disable=None, file=sys.stderr, leave=False)
    with new_directory(out) as folder, bar:
        write_samples(folder, validation.inputs.flatten().numpy())
        length = validation.inputs.shape[1]
        for step in steps:
            model = opened.model_at(step)
            batches = passes(model, validation, opened.batch_size, lambda sequences: bar.update(sequences * length))
            write_step(folder, step or 0, layers, moe.num_experts, (output.routings for output, _ in batches))
