"""Stored runs as data frames, and the difference between two of them."""

import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from scipy import stats

import dsv2
from dsv2.storage.files import write_json
from dsv2.storage.rundir import write_result

LOSSES = {"mla": (2.0, 2.5, 2.1), "mha": (2.3, 2.6, 2.5)}  # by seed


def config(arm: str, seed: int) -> dict[str, Any]:
    attention = {"mla": ("MLA", {"kv_rank": 32}), "mha": ("GQA", {"num_kv_heads": 4})}[arm]
    node = {"_target_": f"dsv2.models.attention.any.{attention[0]}.Config", "num_heads": 4} | attention[1]
    return {"_target_": "dsv2.training.run.Run.Config", "seed": seed, "model": {"attention": node}, "arm": arm}


def stored(folder: Path, arm: str, seed: int, **result: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(arm, seed)))
    if result:
        load = [[4, 0], [3, 1]] if arm == "mla" else [[2, 2], [1, 3]]
        rows = [
            {"step": step, "layer": 1, "expert": expert, "device": 0, "load": pairs}
            for step, loads in zip((10, 20), load, strict=True)
            for expert, pairs in enumerate(loads)
        ]
        pd.DataFrame(rows).to_parquet(folder / "routing.parquet")
        write_result(folder, {"status": "finished"} | result)
    return folder


@pytest.fixture
def study(runs: Path) -> Path:
    """A study of two arms with three seeds each."""
    trials = []
    for number, arm in enumerate(LOSSES):
        for seed, loss in enumerate(LOSSES[arm]):
            folder = stored(runs / f"mine/tiny/trials/{number}{seed:015}", arm, seed, metrics={"val/loss": loss})
            trials.append([arm, seed, None, folder.name])
    write_json(runs / "mine" / "tiny" / "study.json", {"trials": trials})
    return runs / "mine" / "tiny"


def test_every_run_is_a_row(study: Path, runs: Path) -> None:
    stored(runs / "train" / "cccc000000000000", "mla", 7)
    table = dsv2.runs()
    assert list(table["name"]) == [f"mine/tiny/{arm}/{seed}" for arm in LOSSES for seed in range(3)] + [
        "cccc000000000000"
    ]
    assert list(table["val/loss"].dropna()) == [*LOSSES["mla"], *LOSSES["mha"]]
    assert list(table["status"]) == ["finished"] * 6 + ["unfinished"]
    assert len(dsv2.runs("mine")) == 6
    assert "metrics" not in table
    with pytest.raises(ValueError, match="STUDY='yours'"):
        dsv2.runs("yours")


def test_settings_that_differ_are_named_by_their_keys(study: Path) -> None:
    rows = dsv2.compare("mla/0", "mha/1").config.itertuples(index=False)
    assert {key: (first, second) for key, first, second in rows} == {
        "model.attention": ("MLA", "GQA"),
        "model.attention.kv_rank": (32, None),
        "model.attention.num_kv_heads": (None, 4),
        "seed": (0, 1),
    }


def test_two_arms_are_compared_over_the_seeds_that_both_have_finished(study: Path) -> None:
    """Against Student's t from its definition; the last seed of one arm has failed."""
    write_result(study / "trials" / f"1{2:015}", {"status": "failed"})
    (row,) = dsv2.compare("mla/0", "mha/0").metrics.to_dict("records")
    differences = [b - a for a, b in zip(LOSSES["mla"][:2], LOSSES["mha"][:2], strict=True)]
    half = stats.t.ppf(0.975, 1) * statistics.stdev(differences) / 2**0.5
    mean = statistics.fmean(differences)
    assert row["metric"] == "val/loss"
    assert (row["first"], row["second"], row["n"]) == (2.0, 2.3, 2)
    assert row["difference"] == pytest.approx(0.3)
    assert [row[name] for name in ("mean", "low", "high")] == pytest.approx([mean, mean - half, mean + half])


def test_runs_that_are_no_two_arms_of_a_study_have_no_interval(study: Path, runs: Path) -> None:
    stored(runs / "train" / "cccc000000000000", "mla", 7, metrics={"val/loss": 2.0})
    for first, second in (("mla/0", "mla/1"), ("mla/0", "cccc"), ("cccc", "mha/0")):
        table = dsv2.compare(first, second).metrics
        assert (table["n"] == 0).all()
        assert table["low"].isna().all()


def test_the_load_is_that_of_the_last_logged_step_over_its_mean(study: Path) -> None:
    rows = dsv2.compare("mla/0", "mha/0").load.to_dict("records")
    assert rows == [
        {"layer": 1, "expert": 0, "first": 1.5, "second": 0.5},
        {"layer": 1, "expert": 1, "first": 0.5, "second": 1.5},
    ]


def test_a_run_that_has_not_finished_has_settings_alone(study: Path, runs: Path) -> None:
    stored(runs / "train" / "cccc000000000000", "mha", 7)
    config, metrics, load = dsv2.compare("mla/0", "cccc")
    assert set(config["key"]) >= {"seed", "model.attention"}
    assert metrics.empty
    assert load.empty
    with pytest.raises(ValueError, match=r"RUN='mla/9': .*did you mean .*mine/tiny/mla/0"):
        dsv2.compare("mla/0", "mla/9")
