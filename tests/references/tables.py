"""Tables as a study of balance losses writes them, made of random numbers with the sizes of real noise."""

from typing import NamedTuple

import numpy as np
import pandas as pd

SIX = ("none", "expert", "device", "communication", "paper", "paper_dropping")
SKEW = {"none": 1.0, "expert": 0.35, "device": 0.55, "communication": 0.45, "paper": 0.2, "paper_dropping": 0.2}


class Tables(NamedTuple):
    results: pd.DataFrame
    metrics: pd.DataFrame
    routing: pd.DataFrame
    accounting: pd.DataFrame


def fake(
    arms: tuple[str, ...] = SIX,
    seeds: int = 6,
    layers: int = 2,
    experts: int = 32,
    devices: int = 8,
    steps: int = 20,
    top_k: int = 6,
    dense: bool = False,
) -> Tables:
    """Make the tables of a study of `arms`, whose load is skewed as `SKEW` says; a `dense` one routes nothing."""
    rng = np.random.default_rng(0)
    results, metrics, routing = [], [], []
    start = {seed: rng.normal(0, 0.03) for seed in range(seeds)}
    for arm in arms:
        for seed in range(seeds):
            tilt = rng.normal(0, SKEW.get(arm, 1.0), (layers, experts))
            final: dict[str, float] = {}
            own = rng.normal(-0.017 * (arm != arms[0]), 0.02)
            for step in np.linspace(10, 10 * steps, steps).astype(int):
                tokens, done = int(step) * 1024, step / (10 * steps)
                loss = 5.0 + 2.6 * np.exp(-4 * done) + start[seed] + own * done + rng.normal(0, 0.004)
                logged = {
                    "train/loss": loss + rng.normal(0, 0.05),
                    "val/loss": loss,
                    "val/bpb": loss / 4.1 / np.log(2),
                    "train/lr": 3e-3,
                    "perf/tokens_per_s": 9e3 * (1 + 0.1 * rng.random()),
                }
                per_layer = []
                for layer in range(0 if dense else layers):
                    p = np.exp(tilt[layer] * min(3 * done, 1))
                    load = rng.multinomial(1024 * top_k, p / p.sum())
                    on = load.reshape(devices, -1).sum(1)
                    over = np.maximum(on - on.mean(), 0).sum() / on.sum()
                    measured = {
                        "max_violation": load.max() / load.mean() - 1,
                        "entropy": float(-(load / load.sum() * np.log(np.maximum(load, 1) / load.sum())).sum())
                        / np.log(experts),
                        "dead_experts": float((load == 0).mean()),
                        "device_max_violation": on.max() / on.mean() - 1,
                        "received_max_violation": 0.7 * (on.max() / on.mean() - 1),
                        "drop_rate": over * 0.9 if arm.endswith("dropping") else 0.0,
                        "overflow": over,
                        "devices_per_token": 3.0 - rng.random() * 0.01,
                    }
                    per_layer.append(measured)
                    for expert in range(experts):
                        row = {"arm": arm, "seed": seed, "step": int(step), "layer": layer + 1, "expert": expert}
                        where = {"device": expert // (experts // devices), "load": int(load[expert]), "dropped": 0}
                        routing.append(row | where | measured)
                for name in per_layer[0] if per_layer else ():
                    logged[f"routing/{name}"] = float(np.mean([layer[name] for layer in per_layer]))
                for name, value in logged.items():
                    metrics.append((arm, seed, int(step), tokens, name, value))
                final = {k: v for k, v in logged.items() if k.startswith(("val/", "routing/"))}
            base = {"arm": arm, "seed": seed, "fingerprint": f"{arm}{seed}", "status": "finished"}
            results.append(base | {"tokens": 10 * steps * 1024, "seconds": 14.0} | final)
    accounting = pd.DataFrame(
        {
            "arm": arms,
            "total_params": 651_264,
            "active_params": 412_992,
            "flops_per_token": 2_654_208 + np.arange(len(arms)) * 0,
            "kv_elements_per_token": 96,
            "tokens": 10 * steps * 1024,
            "steps": 10 * steps,
            "seeds": seeds,
        }
    )
    columns = ["arm", "seed", "step", "tokens", "metric", "value"]
    return Tables(pd.DataFrame(results), pd.DataFrame(metrics, columns=columns), pd.DataFrame(routing), accounting)


def fake_needles(
    arms: tuple[str, ...] = ("none", "yarn"),
    seeds: int = 3,
    lengths: tuple[int, ...] = (128, 256, 512),
    depths: int = 5,
    questions: int = 6,
) -> pd.DataFrame:
    """Make a table of hidden sentences, of which fewer are found the longer the text is, and more the later the arm."""
    rng = np.random.default_rng(1)
    rows = []
    for number, arm in enumerate(arms):
        for seed in range(seeds):
            for length in lengths:
                share = 1 - np.log2(length / lengths[0]) / (number + len(lengths))
                for question in range(questions):
                    for depth in np.linspace(0, 1, depths):
                        found = bool(rng.random() < share - 0.05 * seed)
                        rows.append((arm, seed, length, depth, question, question % 3, found, -0.1 if found else -9.0))
    return pd.DataFrame(rows, columns=["arm", "seed", "length", "depth", "question", "wording", "correct", "nats"])
