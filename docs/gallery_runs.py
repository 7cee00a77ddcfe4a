"""Figures of the gallery that look at one study, at its runs and at texts through them.

What is stored is read by `ran`, which says what to run where nothing is.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dsv2
from ablations.trials.results import Results, results_of
from ablations.trials.trials import Study, stored
from dsv2 import plots
from dsv2.accounting.deployed import published_caches
from dsv2.commands.analyse import on_text
from dsv2.explore.subject import model_at, open_subject
from dsv2.explore.trace import Trace, budget, dropped, loads, trace
from dsv2.plots.balance import CONTROLLED
from dsv2.report.experts import ANALYSES, Analysis, ModelOnText
from dsv2.routing.drops import drops_by_affinity
from dsv2.routing.interventions import moe_config
from dsv2.storage.rundir import runs_root
from dsv2.training.saved import open_run

BALANCE = "python -m ablations.run sweep=balance_losses scale=tiny"
ATTENTION = "python -m ablations.run sweep=attention_moe scale=tiny"
DROPPING = "python -m ablations.run sweep=token_dropping scale=smoke"


class Drawn(NamedTuple):
    picture: Figure | Axes | Path  # a path is that of a report's figure, to be copied
    caption: str  # how to read it
    finding: str = ""  # of a copied one; others have it as their title


class Missing(ValueError):
    """Runs that a figure needs are not stored."""


def some(items: list[Any], what: str) -> list[Any]:
    """Return `items`. Missing where there are none: a title made of nothing would look finished."""
    if not items:
        raise Missing(f"found no {what}")
    return items


# ---- what is stored --------------------------------------------------------------------------------------------------


@lru_cache
def ran(name: str, scale: str, command: str) -> tuple[Study, Results]:
    """Return a study all of whose trials have finished; else Missing says which command to run."""
    where = runs_root() / name / scale
    if not (where / "study.json").is_file():
        raise Missing(f"no study {name} at scale {scale} under {runs_root()}; run: {command}")
    study = stored(name, scale)
    results = results_of(study)
    if unfinished := int((results["status"] != "finished").sum()):
        raise Missing(f"{unfinished} of {len(results)} trials in {where} have not finished; run: {command}")
    return study, results


balance = partial(ran, "balance_losses", "tiny", BALANCE)
dropping = partial(ran, "token_dropping", "smoke", DROPPING)


def folder_of(results: pd.DataFrame, arm: str) -> Path:
    """Return the run directory of an arm's first seed."""
    return Path(results[results["arm"] == arm].sort_values("seed")["folder"].iloc[0])


@lru_cache
def text_through(arm: str) -> Trace:
    """Trace some sentences of validation text through an arm of balance_losses, seed 0."""
    run = open_subject(open_run(folder_of(balance()[1], arm)))
    model = model_at(run.run, run.steps[-1])
    return trace(model, run.run.tokenizer, run.held_out, most_tokens=run.most_tokens, num_devices=run.moe.num_devices)


# ---- balance and collapse --------------------------------------------------------------------------------------------


def losses_and_control() -> Drawn:
    _, results = balance()
    means = results.groupby("arm")[list(CONTROLLED)].mean()
    targets = zip(("expert", "device", "communication"), CONTROLLED, strict=True)
    moved = [f"{loss} {means[target]['none']:.2f} to {means[target][loss]:.2f}" for loss, target in targets]
    title = f"Each loss alone on its own target: {', '.join(moved)}"
    return Drawn(
        plots.losses_and_control(results, title=title),
        "A point per seed, a bar at the mean; logarithmic, so a step is a factor. Grey: the arm with the lowest mean.",
    )


def collapse_over_training() -> Drawn:
    study, results = balance()
    metrics = results.metrics()
    without = metrics[metrics["arm"] == "none"].groupby(["metric", "step"])["value"].mean()
    busiest, dead = without["routing/max_violation"], without["routing/dead_experts"]
    title = (
        f"Without a loss the busiest expert ends at {1 + busiest.iloc[-1]:.1f} times the mean load; "
        f"experts without a token: {dead.max():.0%} at most, {dead.iloc[-1]:.0%} at the end"
    )
    shown = metrics[metrics["arm"].isin(["none", "expert", "paper"])]
    return Drawn(
        plots.collapse_over_training(shown, arms=list(study.arms), title=title),
        "Collapse as skew, as entropy and as death of the experts: mean and range over seeds.",
    )


def load_at() -> Drawn:
    routing = balance()[1].routing()
    routing = routing[(routing["seed"] == routing["seed"].min()) & (routing["step"] == routing["step"].max())]
    step, busiest = int(routing["step"].max()), 1 + routing.groupby("arm")["max_violation"].max()
    title = (
        f"At step {step} the busiest expert of any layer has {busiest['none']:.1f} times the mean load without a loss, "
        f"{busiest['paper']:.1f} with all three"
    )
    return Drawn(
        plots.load_at(routing, step, arms=["none", "expert", "device", "paper"], title=title),
        "Red experts get more than the mean, blue ones less. `load_view` is the same in a notebook, with a slider.",
    )


# ---- devices and drops -----------------------------------------------------------------------------------------------


def drops_over_training() -> Drawn:
    study, results = dropping()
    means = results.groupby("arm")["routing/drop_rate"].mean()
    title = f"Dropped at the end: {means['paper']:.1%} of the pairs at capacity 1.0, {means['tight']:.1%} at 0.5"
    return Drawn(
        plots.drops_over_training(results.metrics(), arms=list(study.arms), title=title),
        "What is over a capacity of 1.0 in every arm, and what the arms that drop do drop: mean and range over seeds.",
    )


def drops_over_affinity() -> Drawn:
    run = on_text(open_run(folder_of(dropping()[1], "paper")))
    routing = run.model(run.validation.inputs[:8]).routings[0]
    devices = moe_config(run.model).num_devices
    tables = {
        f"capacity {factor}": drops_by_affinity(
            routing._replace(dropped=dsv2.drop(routing, num_devices=devices, capacity_factor=factor))
        )
        for factor in (0.5, 1.0)
    }
    ends = tables["capacity 0.5"]["share"]
    title = (
        f"At half the capacity {ends.iloc[0]:.0%} of the pairs of lowest affinity are dropped, "
        f"{ends.iloc[-1]:.0%} of the highest"
    )
    return Drawn(
        plots.drops_over_affinity(tables, title=title),
        "Pairs of eight validation sequences in the first MoE layer, in ten equal groups by affinity.",
    )


def text_load() -> Drawn:
    traced = text_through("none")
    layer = min(traced.routings)
    table, room = loads(traced, layer, 1.0), budget(traced, layer, 1.0)
    busiest = table.groupby("device")["load"].sum().max()
    title = (
        f"{len(traced.pieces)} tokens without a balance loss: the busiest device gets {busiest} pairs and has room for "
        f"{room}; {table['dropped'].sum() / table['load'].sum():.0%} of all pairs are over capacity 1.0"
    )
    return Drawn(
        plots.text_load(table, room, title=title),
        "One text in the first MoE layer, arm none, seed 0, a colour per device; hatched: what it has no room for.",
    )


def load_profiles() -> Drawn:
    traces = {arm: text_through(arm) for arm in ("none", "expert", "paper")}
    tables = {arm: loads(traced, min(traced.routings), 1.0) for arm, traced in traces.items()}
    top = {arm: table["load"].max() / table["load"].mean() for arm, table in tables.items()}
    title = "Busiest expert over the mean, on the same text: " + ", ".join(f"{arm} {x:.1f}" for arm, x in top.items())
    return Drawn(
        plots.load_profiles(tables, title=title),
        "Experts of different runs have only their rank in common, so each run's are sorted.",
    )


def paint_tokens() -> Drawn:
    traced = text_through("none")
    layer = min(traced.routings)
    over = dropped(traced, layer, 1.0)
    lost = float(over[:, 0].float().mean())
    routing = traced.routings[layer]._replace(dropped=over[None])
    title = f"Device of each token's first choice; struck through: the {lost:.0%} that it has no room for"
    return Drawn(
        plots.paint_tokens(traced.pieces, routing, num_devices=traced.num_devices, title=title),
        "The text of the figures above. `plots.paint_html` is the same in a notebook, `python -m dsv2 explore` on a "
        "page.",
    )


# ---- attention and cache ---------------------------------------------------------------------------------------------


def cache_over_context() -> Drawn:
    accounts = published_caches()
    ratio = accounts["V2 (MLA)"].kv_bytes_per_token / accounts["V2 with MHA"].kv_bytes_per_token
    return Drawn(
        plots.cache_over_context(accounts, title=f"MLA keeps {ratio:.1%} of the cache of MHA with its heads"),
        "Computed from the configs of the published models: 16 bits per element, or 6 with scales and offsets.",
    )


# ---- experts ---------------------------------------------------------------------------------------------------------


@lru_cache
def experts() -> ModelOnText:
    """Open small_mla, seed 0, of attention_moe, on three domains."""
    return on_text(open_run(folder_of(ran("attention_moe", "tiny", ATTENTION)[1], "small_mla")))


@lru_cache
def analysed(name: str) -> Analysis:
    return ANALYSES[name](experts())


def analysis(name: str, figure: str, caption: str) -> Drawn:
    """A figure of `python -m dsv2 analyse`."""
    whose = "Of small_mla, seed 0; `python -m dsv2 analyse RUN` draws it for any run."
    return Drawn(analysed(name).figures[figure], f"{caption} {whose}")
