"""What a study has stored, as data frames."""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.trials.trials import Study, stored
from dsv2.routing.measures import Measures
from dsv2.storage.rundir import METRICS, ROUTING, read_result

ROUTING_COLUMNS = ["arm", "seed", "step", "layer", "expert", "device", "load", "dropped", *Measures._fields]


class Results(pd.DataFrame):
    """One row per arm and seed: status, tokens, seconds, folder of its trial, and the final value of every metric."""

    @property
    def _constructor(self) -> type["Results"]:
        return Results

    def metrics(self) -> pd.DataFrame:
        """Long: one row per trial, logged step and metric; columns arm, seed, step, tokens, metric, value.

        tokens: trained on up to the step. metric: a logged name (`dsv2.metrics.METRICS`); `routing/*` is averaged over
        layers and the steps since the last logged one, `val/*` is there at the steps that validate.
        """
        frames = []
        for arm, seed, folder in zip(self["arm"], self["seed"], self["folder"], strict=True):
            if rows := _rows(Path(folder) / METRICS):
                frame = pd.DataFrame(rows).melt(["step", "tokens"], var_name="metric", value_name="value")
                frames.append(frame.dropna(subset="value").assign(arm=arm, seed=seed))
        columns = ["arm", "seed", "step", "tokens", "metric", "value"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def routing(self) -> pd.DataFrame:
        """Long: one row per trial, logged step, MoE layer and expert; empty for dense models.

        Columns arm, seed, step, layer, expert, device (that holds the expert), load (token-expert pairs since the last
        logged step, dropped ones included) and dropped (pairs); then the measures of the whole layer, the same on each
        of its rows: max_violation, entropy, dead_experts, device_max_violation, received_max_violation, drop_rate,
        overflow, devices_per_token (`dsv2.routing.measures.Measures`).
        """
        frames = []
        for arm, seed, folder in zip(self["arm"], self["seed"], self["folder"], strict=True):
            frame = _frame(Path(folder) / ROUTING)
            if frame is not None:
                frame.insert(0, "seed", seed)
                frame.insert(0, "arm", arm)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ROUTING_COLUMNS)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; leaves out what is none, as a line that a kill cut short, and says so."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and {"step", "tokens"} <= set(row):
            rows.append(row)
        else:
            print(f"warning: {path}: line {number} is damaged and left out", file=sys.stderr)
    return rows


def _frame(path: Path) -> pd.DataFrame | None:
    """A table, or None where there is none, or none that can be read, which it says."""
    try:
        return pd.read_parquet(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        print(f"warning: {path} is damaged and left out: {error}", file=sys.stderr)
        return None


def results(name: str, scale: str = "smoke") -> Results:
    """The results of study `name` as it was last run at `scale`: a data frame, one row per arm and seed.

    Columns arm, seed, fingerprint, status (finished, failed, diverged or unfinished), tokens, seconds (of training),
    error, folder, then one for the final value of each metric, and of each probe recall/accuracy and the like.
    """
    return results_of(stored(name, scale))


def results_of(study: Study) -> Results:
    """One row for every arm and seed of `study`, in its order; `status` is unfinished where there is no result yet.

    A probe's outcome stands in columns of its own, as in recall/accuracy; a row is finished once its probes are too.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for trial in study.trials:
        result = read_result(trial.folder)
        status = result.get("status", "unfinished")
        if trial.probe is None:
            rows[trial.arm, trial.seed] = {
                "arm": trial.arm,
                "seed": trial.seed,
                "fingerprint": trial.folder.name,
                "status": status,
                "tokens": result.get("tokens"),
                "seconds": result.get("seconds"),
                "error": result.get("error"),
                "folder": str(trial.folder),
            } | result.get("metrics", {})
            continue
        row = rows[trial.arm, trial.seed]
        if row["status"] == "finished" != status:
            row |= {"status": status, "error": f"{trial.probe}: {result.get('error')}" if result else None}
        if status == "finished":
            logged = _rows(trial.folder / METRICS)
            row[f"{trial.probe}/accuracy"] = result["metrics"]["val/accuracy"]
            row[f"{trial.probe}/accuracy_in_training"] = accuracy_in_training(logged)
            row[f"{trial.probe}/steps_to_half"] = steps_to_half(logged)
    return Results(rows.values())


def accuracy_in_training(logged: list[dict[str, Any]]) -> float:
    """Mean of the validation accuracies of a whole run: how early a task is learned. NaN where none was logged."""
    accuracies = [row["val/accuracy"] for row in logged if "val/accuracy" in row]
    return statistics.fmean(accuracies) if accuracies else math.nan


def steps_to_half(logged: list[dict[str, Any]]) -> float:
    """The first logged step whose validation accuracy is at least a half; infinity where none is."""
    reached = (row["step"] for row in logged if row.get("val/accuracy", 0.0) >= 0.5)
    return float(next(reached, math.inf))
