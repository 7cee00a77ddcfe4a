"""What a study has stored, as data frames."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.studies import Study, stored
from dsv2.training.result import read_result


class Results(pd.DataFrame):
    """One row a trial: arm, seed, fingerprint, status, tokens, seconds, folder, and the final value of every metric."""

    @property
    def _constructor(self) -> type["Results"]:
        return Results

    def metrics(self) -> pd.DataFrame:
        """Long: one row a trial, logged step and metric; columns arm, seed, step, tokens, metric, value."""
        frames = []
        for arm, seed, folder in zip(self["arm"], self["seed"], self["folder"], strict=True):
            path = Path(folder) / "metrics.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
            if rows:
                frame = pd.DataFrame(rows).melt(["step", "tokens"], var_name="metric", value_name="value")
                frames.append(frame.dropna(subset="value").assign(arm=arm, seed=seed))
        columns = ["arm", "seed", "step", "tokens", "metric", "value"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def routing(self) -> pd.DataFrame:
        """One row a trial, logged step, layer and expert; columns as in `routing.parquet`, after arm and seed."""
        frames = []
        for arm, seed, folder in zip(self["arm"], self["seed"], self["folder"], strict=True):
            if (path := Path(folder) / "routing.parquet").is_file():
                frame = pd.read_parquet(path)
                frame.insert(0, "seed", seed)
                frame.insert(0, "arm", arm)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["arm", "seed", "step"])


def results(name: str, scale: str = "smoke") -> Results:
    """The results of study `name` as it was last run at `scale`."""
    return results_of(stored(name, scale))


def results_of(study: Study) -> Results:
    """One row for every trial of `study`, in its order; `status` is unfinished where there is no result yet."""
    rows: list[dict[str, Any]] = []
    for trial in study.trials:
        result = read_result(trial.folder)
        rows.append(
            {
                "arm": trial.arm,
                "seed": trial.seed,
                "fingerprint": trial.folder.name,
                "status": result.get("status", "unfinished"),
                "tokens": result.get("tokens"),
                "seconds": result.get("seconds"),
                "error": result.get("error"),
                "folder": str(trial.folder),
            }
            | result.get("metrics", {})
        )
    return Results(rows)
