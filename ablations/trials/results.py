"""A study's stored results, as data frames."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.trials.kernels import AND, kernels_of
from ablations.trials.trials import Study, stored
from dsv2.evaluation.needle import COLUMNS as NEEDLE_COLUMNS
from dsv2.printing import complain, warn_once
from dsv2.routing.measures import Measures
from dsv2.storage.rundir import METRICS, NEEDLES, ROUTING, read_result

ROUTING_COLUMNS = ["arm", "seed", "step", "layer", "expert", "device", "load", "dropped", *Measures._fields]


class Results(pd.DataFrame):
    """One row per arm and seed: status, tokens, seconds, folder of the trial, and the final value of every metric."""

    @property
    def _constructor(self) -> type["Results"]:
        return Results

    def _undamaged(self) -> Iterator[tuple[str, int, str]]:
        """Yield arm, seed and folder of each trial whose files are not known to be damaged."""
        rows = self[self["status"] != "damaged"]
        yield from zip(rows["arm"], rows["seed"], rows["folder"], strict=True)

    def metrics(self) -> pd.DataFrame:
        """Return a long table, one row per trial, logged step and metric.

        Columns: arm, seed, step, tokens (trained on up to the step), metric (a name in `dsv2.metrics.METRICS`), value.
        `routing/*` is averaged over layers and over the steps since the last logged one; `val/*` is present only at
        validation steps.
        """
        frames = []
        for arm, seed, folder in self._undamaged():
            if rows := _rows(Path(folder) / METRICS):
                frame = pd.DataFrame(rows).melt(["step", "tokens"], var_name="metric", value_name="value")
                frames.append(frame.dropna(subset="value").assign(arm=arm, seed=seed))
        columns = ["arm", "seed", "step", "tokens", "metric", "value"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def routing(self) -> pd.DataFrame:
        """Return a long table, one row per trial, logged step, MoE layer and expert; empty for dense models.

        Columns: arm, seed, step, layer, expert, device (of the expert), load (token-expert pairs since the last logged
        step, including dropped ones) and dropped (pairs); then the measures of the layer, repeated on each of its
        rows: max_violation, entropy, dead_experts, device_max_violation, received_max_violation, drop_rate, overflow,
        devices_per_token (`dsv2.routing.measures.Measures`).
        """
        return self._stored(ROUTING, ROUTING_COLUMNS)

    def needles(self) -> pd.DataFrame:
        """Return a long table, one row per trial, question of the needle benchmark and depth; empty without that.

        Columns: arm, seed, then those of `dsv2.evaluation.needle.NeedleGrid.measure`.
        """
        return self._stored(NEEDLES, ["arm", "seed", *NEEDLE_COLUMNS])

    def _stored(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Concatenate the Parquet tables of this name in the trials' folders, after the columns arm and seed."""
        frames = []
        for arm, seed, folder in self._undamaged():
            frame = _frame(Path(folder) / name)
            if frame is not None:
                frame.insert(0, "seed", seed)
                frame.insert(0, "arm", arm)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`; damaged lines, as after a kill, are skipped with a warning."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and {"step", "tokens"} <= set(row):
            rows.append(row)
        else:
            warn_once(f"{path}: line {number} is damaged and was skipped")
    return rows


def _frame(path: Path) -> pd.DataFrame | None:
    """Read a Parquet table; None if it is missing or, with a warning, damaged."""
    try:
        return pd.read_parquet(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        warn_once(f"{path} is damaged and was skipped: {error}")
        return None


def results(name: str | Path, scale: str = "smoke", seeds: Sequence[int] | None = None) -> Results:
    """Return the results of study `name` at `scale`: a data frame with one row per arm and seed.

    The rows are those of the study's report, and every other finished trial of its arms; with `seeds`, those of these
    seeds.

    Columns: arm, seed, fingerprint, status (finished, failed, diverged, damaged or unfinished), tokens, seconds
    (of training), error (of a finished trial: its benchmarks that failed), folder, kernels (that computed it), then the
    final value of each metric and the results of each probe, such as recall/accuracy.
    """
    study = stored(name, scale)
    if seeds is not None:
        return results_of(study.with_seeds(seeds))
    table = results_of(study.with_seeds([*study.seeds, *study.others])) if study.others else results_of(study)
    return table[~table["seed"].isin(study.others) | (table["status"] == "finished")].reset_index(drop=True)


def results_of(study: Study) -> Results:
    """Return one row per arm and seed of `study`, in its order; without a result, `status` is unfinished.

    A probe's results have columns of their own, such as recall/accuracy; a row is finished once its probes are too.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    unprotected = 0
    for trial in study.trials:
        result = read_result(trial.folder)
        status = result.get("status", "unfinished")
        unprotected += status == "finished" and "files" not in result
        if trial.probe is None:
            rows[trial.arm, trial.seed] = {
                "arm": trial.arm,
                "seed": trial.seed,
                "fingerprint": trial.folder.name,
                "status": status,
                "tokens": result.get("tokens"),
                "seconds": result.get("seconds"),
                "error": result.get("error") or _failed(result),
                "folder": str(trial.folder),
                "kernels": kernels_of(result) if result else None,
            } | result.get("metrics", {})
            continue
        row = rows[trial.arm, trial.seed]
        if row["status"] == "finished" != status:
            row |= {"status": status, "error": f"{trial.probe}: {result.get('error')}" if result else None}
        if status == "finished":
            row["kernels"] = AND.join(sorted({row["kernels"] or kernels_of(result), kernels_of(result)}))
            logged = _rows(trial.folder / METRICS)
            row[f"{trial.probe}/accuracy"] = result["metrics"]["val/accuracy"]
            row[f"{trial.probe}/accuracy_in_training"] = accuracy_in_training(logged)
            row[f"{trial.probe}/steps_to_half"] = steps_to_half(logged)
    if unprotected:
        text = f"note: {unprotected} trials of {study.name} were stored before checksums; nothing checks their files"
        complain(text)
    return Results(rows.values())


def _failed(result: dict[str, Any]) -> str | None:
    """Return which benchmarks of a finished trial failed, and why; their scores are missing."""
    failed = result.get("failed_benchmarks", {})
    return "; ".join(f"{task} failed: {why}" for task, why in failed.items()) or None


def accuracy_in_training(logged: list[dict[str, Any]]) -> float:
    """Average validation accuracy over a run, a measure of how early the task is learned; NaN if none was logged."""
    accuracies = [row["val/accuracy"] for row in logged if "val/accuracy" in row]
    return statistics.fmean(accuracies) if accuracies else math.nan


def steps_to_half(logged: list[dict[str, Any]]) -> float:
    """Return the first logged step with a validation accuracy of at least 0.5; infinity if there is none."""
    reached = (row["step"] for row in logged if row.get("val/accuracy", 0.0) >= 0.5)
    return float(next(reached, math.inf))
