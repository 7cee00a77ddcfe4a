"""Stored runs side by side, as data frames: all of them, and the difference between two."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dsv2.statistics.paired import paired_differences, t_interval
from dsv2.storage.rundir import CONFIG, ROUTING, finished
from dsv2.storage.runs import StoredRun, Trial, find_run, list_runs, list_trials
from dsv2.storage.values import read_yaml

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("study", "scale", "arm", "probe")  # keys of a config that do not affect the computation
METRIC_COLUMNS = ["metric", "first", "second", "difference", "n", "mean", "low", "high"]


class Comparison(NamedTuple):
    """Two runs side by side; differences are the second minus the first."""

    config: "pd.DataFrame"  # key, first, second: the settings that differ; None where a run has no such key
    # metric, first, second, difference; then, if the runs are trials of two arms of one study: n (seeds that both arms
    # have finished), mean (of the paired differences) and low, high (its 95% interval, Student's t), else 0 and NaN
    metrics: "pd.DataFrame"
    load: "pd.DataFrame"  # layer, expert, first, second: pairs over their mean, in the last logged step


def runs(study: str | None = None) -> "pd.DataFrame":
    """Return one row per stored run, as `dsv2 ls` lists them.

    Columns: name, study, scale, arm, seed, probe, fingerprint, status, tokens, seconds (of training), ended, folder,
    then the final value of each metric.

    `study` selects those of a study, or of one of its scales as in `balance_losses/tiny`. Raises ValueError if it has
    no runs.
    """
    import pandas as pd

    columns = [field for field in StoredRun._fields if field != "metrics"]
    rows = [{name: getattr(run, name) for name in columns} | dict(run.metrics) for run in list_runs(study)]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two stored runs, which are given as in `dsv2.open_run`.

    Metrics and load are empty unless both have finished. Raises ValueError if there is no such run.
    """
    import pandas as pd

    folders = find_run(first), find_run(second)
    results = [finished(folder) for folder in folders]
    metrics, load = pd.DataFrame(columns=METRIC_COLUMNS), pd.DataFrame(columns=["layer", "expert", "first", "second"])
    if results[0] is not None and results[1] is not None:
        values = results[0]["metrics"], results[1]["metrics"]
        paired = _paired(*folders)
        rows = [
            {"metric": name, "first": values[0][name], "second": values[1][name]}
            | {"difference": values[1][name] - values[0][name]}
            | _interval([(a[name], b[name]) for a, b in paired if name in a and name in b])
            for name in values[0]
            if name in values[1]
        ]
        metrics = pd.DataFrame(rows, columns=METRIC_COLUMNS)
        sides = [
            last_load(folder).rename(columns={"load": side})
            for folder, side in zip(folders, load.columns[2:], strict=True)
        ]
        load = sides[0].merge(sides[1], on=["layer", "expert"], how="outer")
    return Comparison(differing(*folders), metrics, load)


def _paired(first: Path, second: Path) -> list[tuple[Mapping[str, float], Mapping[str, float]]]:
    """Return the metrics of both runs' arms for each seed that both have finished; empty unless they are two arms."""
    trials = list_trials()
    arms = [_same_arm(trial_of(folder, trials), trials) for folder in (first, second)]
    if not all(arms) or arms[0][0].arm == arms[1][0].arm or arms[0][0].setting != arms[1][0].setting:
        return []
    metrics = [
        {trial.seed: result["metrics"] for trial in arm if (result := finished(trial.folder)) is not None}
        for arm in arms
    ]
    return [(metrics[0][seed], metrics[1][seed]) for seed in metrics[0] if seed in metrics[1]]


def _same_arm(trial: Trial | None, trials: list[Trial]) -> list[Trial]:
    """Return the trials that differ from this one in the seed alone."""
    if trial is None:
        return []
    return [other for other in trials if other.arm == trial.arm and other.setting == trial.setting]


def _interval(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return n, and the mean and 95% interval of the differences of (first, second) values, one per seed."""
    first, second = np.array(pairs, dtype=float).reshape(-1, 2).T
    if len(pairs) < 2 or not np.isfinite([first, second]).all():
        return {"n": len(pairs), "mean": math.nan, "low": math.nan, "high": math.nan}
    differences = paired_differences(second, first)
    return {"n": len(pairs), "mean": float(differences.mean())} | t_interval(differences)._asdict()


def trial_of(folder: Path, trials: list[Trial]) -> Trial | None:
    """Return the listed trial whose run directory `folder` is, if any is."""
    return next((trial for trial in trials if trial.folder.resolve() == folder.resolve()), None)


def differing(first: Path, second: Path) -> "pd.DataFrame":
    """Return the settings in which the configs of two run directories differ: key, first, second."""
    import pandas as pd

    sides = [dict(_settings(read_yaml(folder / CONFIG))) for folder in (first, second)]
    keys = [key for key in dict.fromkeys((*sides[0], *sides[1])) if key not in LABELS]
    rows = [(key, sides[0].get(key), sides[1].get(key)) for key in keys]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["key", "first", "second"], dtype=object)


def _settings(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a config with their values; a component's own key has the name of its class."""
    if not isinstance(node, dict):
        yield key, node
        return
    for name, value in node.items():
        if name == "_target_":
            if key:
                yield key, str(value).split(".")[-2]
        else:
            yield from _settings(value, f"{key}.{name}" if key else str(name))


def last_load(folder: Path) -> "pd.DataFrame":
    """Return layer, expert and load (pairs over their mean) in the last logged step; empty for a dense model."""
    import pandas as pd

    columns = ["layer", "expert", "load"]
    if not (folder / ROUTING).is_file():
        return pd.DataFrame(columns=columns)
    table = pd.read_parquet(folder / ROUTING, columns=["step", *columns])
    table = table[table["step"] == table["step"].max()].sort_values(["layer", "expert"])
    table["load"] = table["load"] / table.groupby("layer")["load"].transform("mean")
    return table[columns].reset_index(drop=True)
