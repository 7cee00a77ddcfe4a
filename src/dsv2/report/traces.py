"""Analyses of routing traces, each with a finding, its tables and its figures, as `experts` has of a model.

The same questions have the same tables and figures. One that does not apply to the traces raises DoesNotApply.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsv2.accounting.traffic import bytes_per_send, expected_devices
from dsv2.plots import experts as plots_experts
from dsv2.plots import load as plots_load
from dsv2.report.findings import NO_PAIRS, ONE_EXPERT, SAME_EXPERTS, Analysis, by_token, drawn, settling, together
from dsv2.routing.interventions import DoesNotApply
from dsv2.routing.tallies import Placement, Tallies
from dsv2.routing.traces import ROWS, Traces

ONE_DEVICE = "all experts are on one device (--devices)"


class TracedRun(NamedTuple):
    """Traces with what one pass over them counted."""

    name: str
    traces: Traces
    placement: Placement
    tallies: Tallies
    dim: int | None = None  # width of the model


def needs(names: Collection[str]) -> dict[str, bool]:
    """Return what `tally` has to count for these analyses."""
    return {"pairs": "coactivation" in names, "tokens": "tokens" in names}


def _load(run: TracedRun) -> Analysis:
    _require_several(run)
    table, loads = run.tallies.load, run.tallies.expert_load
    last = _last(table)
    worst = last.iloc[int(last["max_violation"].argmax())]
    busiest = f"busiest expert of layer {worst['layer']:.0f} has {1 + worst['max_violation']:.2f} times the mean load"
    layers = plots_experts.spread_layers(loads["layer"])
    shown = loads[loads["layer"].isin(layers)].assign(arm=run.name)
    return drawn(
        "How even is the load of the experts?",
        f"After step {worst['step']:.0f}, the {busiest}; over all layers the load has {last['entropy'].mean():.1%} "
        f"of the maximum, and {last['dead_experts'].mean():.1%} of the experts have no token.",
        "max_violation: highest load over the mean load, minus 1; entropy: of the load, over log E; dead_experts: "
        "share of experts without a token. load counts token-expert pairs.",
        {"load": table, "expert_load": loads},
        {"load": lambda: plots_load.load_heatmap(shown, title=f"The {busiest}")},
    )


def _devices(run: TracedRun) -> Analysis:
    placement = run.placement
    if placement.num_devices == 1:
        raise DoesNotApply(ONE_DEVICE)
    table, loads = run.tallies.devices, run.tallies.device_load
    last = _last(table)
    dropped, reached = last["drop_rate"].mean(), last["devices_per_token"].mean()
    limit = assumed = ""
    if placement.max_devices is not None:
        limit = f" with at most {placement.max_devices} per token"
        assumed = (
            f" Under the limit, {last['displaced'].mean():.1%} of the pairs (displaced) would go to other experts on "
            "the token's devices. The traces do not say to which, so they are counted evenly for each of these: "
            "drop_rate is off by at most displaced, while received and devices_per_token are exact."
        )
    over = f"a capacity factor of {placement.capacity_factor:g} would drop {dropped:.1%} of the pairs"
    busiest = f"the busiest device has {1 + last['device_max_violation'].max():.2f} times the mean load"
    shown = _last(loads).assign(arm=run.name, seed=0)
    return drawn(
        "How even is the load of the devices, and what would be dropped?",
        f"On {placement.num_devices} devices{limit}, {over} in batches of {placement.batch_tokens:,} tokens; "
        f"{busiest}, and a token is sent to {reached:.2f} devices.",
        "Devices hold equal groups of consecutive experts. load: pairs; received: tokens, once per device; dropped: "
        "pairs above the budget of section 2.2.4, without exempt sequences. Means over layers after the last step."
        + assumed,
        {"devices": table, "device_load": loads},
        {"device_load": lambda: plots_load.device_load(shown, title=f"In one of the layers, {busiest}")},
    )


def _traffic(run: TracedRun) -> Analysis:
    num_devices, most, traces = run.placement.num_devices, run.placement.max_devices, run.traces
    if num_devices == 1:
        raise DoesNotApply(ONE_DEVICE)
    if run.dim is None:
        raise DoesNotApply("the width of the model is not known (--dim)")
    size = bytes_per_send(run.dim, num_devices)
    devices = run.tallies.devices
    free = devices["devices_per_token" if most is None else "devices_without_limit"]
    sends = pd.DataFrame({"by_pair": float(traces.top_k), "by_device": free})
    if most is not None:
        sends["by_device_limited"] = devices["devices_per_token"]
    busiest = (1 + devices["received_max_violation"]).rename("busiest")
    parts = [devices[["layer", "step"]], sends.add_prefix("sends_"), (sends * size).add_prefix("bytes_"), busiest]
    table = pd.concat(parts, axis=1)
    last, name = _last(table), sends.columns[-1]
    random = expected_devices(traces.num_experts, traces.top_k, num_devices, most)
    return drawn(
        "How much does the all-to-all move?",
        f"Sent once per device, a token takes {last[f'sends_{name}'].mean():.2f} sends and "
        f"{last[f'bytes_{name}'].mean():,.0f} bytes per MoE layer, against {last['bytes_by_pair'].mean():,.0f} once "
        f"per pair; a random router takes {random:.2f} sends.",
        f"bfloat16 at a width of {run.dim:,}, to the expert and back, forward and backward; 1 / D of the sends stay on "
        "the device. busiest: tokens that the busiest device receives, over the mean. Means over layers after the last "
        "step.",
        {"traffic": table},
        {},
    )


def _tokens(run: TracedRun) -> Analysis:
    _require_choice(run)
    tallies = run.tallies
    assert tallies.tokens is not None
    assert tallies.expert_tokens is not None
    return by_token(tallies.tokens, tallies.expert_tokens, f"tokens shuffled within blocks of {ROWS:,}")


def _coactivation(run: TracedRun) -> Analysis:
    if run.traces.top_k < 2:
        raise DoesNotApply(NO_PAIRS)
    _require_choice(run)
    assert run.tallies.pairs is not None
    return together(run.tallies.pairs)


def _router(run: TracedRun) -> Analysis:
    _require_several(run)
    table = run.tallies.router
    if table.isna().any(axis=None):
        raise DoesNotApply("some scores are negative, or all of a token are 0")
    last = _last(table)
    mass, top, entropy = (last[name].mean() for name in ("chosen_mass", "top_gate", "entropy_chosen"))
    title = f"The top gate is {top:.0%} of the sum of the chosen gates"
    return drawn(
        "How confident is the router?",
        f"{title}, which is {mass:.2f}; among the chosen, gates have {entropy:.0%} of the maximum entropy.",
        "The scores of experts that were not chosen are not in the traces. The finding averages over layers after the "
        "last step; the table lists each.",
        {"router": table},
        {"router": lambda: plots_experts.certainty_over_layers(last, title=title)},
    )


def _saturation(run: TracedRun) -> Analysis:
    _require_several(run)
    if len(run.traces.steps) < 2:
        raise DoesNotApply("the traces are of one step")
    return settling(run.tallies.saturation, "for all tokens of the traces")


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last step."""
    return table[table["step"] == table["step"].max()]


def _require_several(run: TracedRun) -> None:
    if run.traces.num_experts == 1:
        raise DoesNotApply(ONE_EXPERT)


def _require_choice(run: TracedRun) -> None:
    """Raise DoesNotApply if in every layer every token has the same experts after the last step."""
    _require_several(run)
    loads = _last(run.tallies.expert_load)["load"]
    if np.isin(loads, (0, run.traces.num_tokens)).all():
        raise DoesNotApply(SAME_EXPERTS)


ANALYSES: dict[str, Callable[[TracedRun], Analysis]] = {
    "load": _load,
    "devices": _devices,
    "traffic": _traffic,
    "tokens": _tokens,
    "coactivation": _coactivation,
    "router": _router,
    "saturation": _saturation,
}
