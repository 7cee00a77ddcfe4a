"""Names survive moves: a store that 55944a2 wrote, before config classes moved, is read, skipped, resumed and reported.

`tests/stores/55944a2.tar.xz` holds two studies (`before.yaml`, one trial of which was stopped after its checkpoint of
step 8; `probed.yaml`, on synthetic data with a probe), a run of `python -m dsv2.train`, an imported model, the corpus,
and what was expected of them then.
"""

import io
import json
import tarfile
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

import dsv2
from ablations import results, study
from ablations.report import main as report
from ablations.running import runner
from ablations.trials.trials import Study, stored
from dsv2.__main__ import main
from dsv2.config import former_name
from dsv2.report.terminal import open_console
from dsv2.storage.rundir import finished
from dsv2.training import fit
from dsv2.training.run import folder_of, from_plain
from tests.references.processes import Here
from tests.references.runs import rows, timeless

STORE = Path(__file__).parents[1] / "stores" / "55944a2.tar.xz"
INTERRUPTED = Path("runs/before/smoke/trials/c3e61153e8714990")
UNFINISHED = ("moe", 1)  # its arm and seed

# Another machine may add float32 terms in another order: 6e-8 relative per sum, which four steps of AdamW carry on. On
# the machine that wrote the store the metrics are the same to the bit. A gain is the difference of two losses of about
# 5 nats, and float32 numbers there are 5e-7 apart.
RELATIVE, ABSOLUTE = 1e-5, 5e-7


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store as it was found, in the current directory; nothing in it may be renamed and no trial may be added."""
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSV2_RUNS", "runs")
    whole = Path("probed.yaml").read_text()
    without = whole.replace("probes: [arithmetic]\n", "").replace(", arithmetic/accuracy_in_training: higher", "")
    Path("probed.yaml").write_text(without)  # additions have held-out sums since; the next test has the whole file
    Path("with_additions.yaml").write_text(whole)
    before = folders()
    assert len(before) == 10 + 8 + 1
    yield tmp_path
    assert folders() == before


def folders() -> list[Path]:
    """The folder of every trial and run."""
    return sorted([*Path("runs").glob("*/smoke/trials/*"), *Path("runs/train").iterdir()])


@pytest.fixture
def trained(monkeypatch):
    """Studies run in this process; the list grows by the folder of every run that is trained."""
    trained, train = [], fit._train

    def counted(run, folder, *rest):
        trained.append(folder.relative_to(Path.cwd()))
        return train(run, folder, *rest)

    monkeypatch.setattr(fit, "_train", counted)
    monkeypatch.setattr(runner, "executor", lambda *_, **__: Here())
    return trained


def run(planned: Study) -> str:
    """Run what is not finished of a study; returns what is printed."""
    console = open_console()
    console.file = io.StringIO()
    assert runner.run_trials(planned, workers=1, launcher="local", console=console) is True
    return console.file.getvalue()


def expected(name: str) -> pd.DataFrame:
    table = pd.read_csv(Path("expected") / f"{name}.csv", float_precision="round_trip")
    return table.drop(columns=[column for column in table if column.startswith("arithmetic/")])


def is_unfinished(table: pd.DataFrame) -> pd.Series:
    return (table["arm"] == UNFINISHED[0]) & (table["seed"] == UNFINISHED[1])


def assert_same(actual: pd.DataFrame, wanted: pd.DataFrame, **tolerance: float) -> None:
    """The columns that were written down, row by row; to the bit unless a tolerance is given."""
    exact = {} if tolerance else {"check_exact": True}
    pd.testing.assert_frame_equal(
        pd.DataFrame(actual[wanted.columns]).reset_index(drop=True),
        wanted.reset_index(drop=True),
        check_dtype=False,
        **exact,
        **tolerance,
    )


# ---- found and skipped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [stored, partial(study, seeds=[0, 1])])
def test_every_trial_has_the_folder_that_it_had(store, plan):
    """Whether the study is read as it was run, or planned anew from its file."""
    for name in ("before", "probed"):
        planned = plan(f"{name}.yaml")
        assert all(trial.folder.is_dir() for trial in planned.trials)
        assert all(trial.run.fingerprint(former_name) == trial.folder.name for trial in planned.trials)
        assert all(trial.run.fingerprint() != trial.folder.name for trial in planned.trials)
        unfinished = [trial.folder for trial in planned.trials if finished(trial.folder) is None]
        assert unfinished == ([INTERRUPTED] if name == "before" else [])


def test_a_new_run_starts_from_an_old_one(store, trained):
    """Which has no stored tokenizer, checksums or fields that came later; it stays as it was."""
    (old,) = Path("runs/train").iterdir()
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    words = ["trainer.tokens=512", "trainer.progress=false", "logger.wandb.mode=disabled", "trainer.accelerator=cpu"]
    run = dsv2.load([*words, f"init_from={old.name}", "data.path=corpus/texts.jsonl"])
    result = fit.fit(run, Path("derived").absolute())
    assert (result["status"], result["provenance"]["origin"]["fingerprint"]) == ("finished", old.name)
    again = dsv2.load([*words, "init_from=before/smoke/moe/1:8", "data.path=corpus/texts.jsonl"])
    assert (again.init_from.run, again.init_from.step) == (str(INTERRUPTED.absolute()), 8)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_additions_have_other_data_now(store):
    planned = study({**yaml.safe_load(Path("with_additions.yaml").read_text()), "name": "probed"}, seeds=[0, 1])
    assert {trial.folder.is_dir() for trial in planned.trials if trial.probe == "arithmetic"} == {False}
    assert {trial.folder.is_dir() for trial in planned.trials if trial.probe is None} == {True}


def test_nothing_is_trained_but_the_interrupted_trial_which_resumes(store, trained):
    cut = (INTERRUPTED / "metrics.jsonl").read_text().splitlines()
    assert "10 trials, 9 already finished" in run(study("before.yaml", seeds=[0, 1]))
    assert trained == [INTERRUPTED]
    result = json.loads((INTERRUPTED / "result.json").read_text())
    wanted = json.loads(Path("expected/interrupted_result.json").read_text())
    for key in ("status", "study", "arm", "seed", "fingerprint", "tokens", "steps", "data"):
        assert result[key] == wanted[key], key
    since = {"train/z_loss"}  # logged since
    of_then = {name: value for name, value in timeless(result["metrics"]).items() if name not in since}
    assert of_then == pytest.approx(timeless(wanted["metrics"]), rel=RELATIVE, abs=ABSOLUTE)
    logged = (INTERRUPTED / "metrics.jsonl").read_text().splitlines()
    assert logged[:4] == cut[:4]  # with their speed: up to step 8 nothing was computed again
    assert logged[4] != cut[4]
    whole = [json.loads(line) for line in Path("expected/interrupted_metrics.jsonl").read_text().splitlines()]
    for row, other in zip(rows(INTERRUPTED), map(timeless, whole), strict=True):
        of_then = {name: value for name, value in row.items() if name not in since}
        assert of_then == pytest.approx(other, rel=RELATIVE, abs=ABSOLUTE)
    assert "10 trials, 10 already finished" in run(stored("before.yaml"))
    assert trained == [INTERRUPTED]
    table = results("before")
    assert_same(table[~is_unfinished(table)], (wanted := expected("before"))[~is_unfinished(wanted)])
    assert_same(table[is_unfinished(table)], wanted[is_unfinished(wanted)], rtol=RELATIVE, atol=ABSOLUTE)


def test_a_finished_study_trains_nothing(store, trained):
    assert "4 trials, 4 already finished" in run(study("probed.yaml", seeds=[0, 1]))
    assert trained == []
    assert_same(results("probed"), expected("probed"))


# ---- read ------------------------------------------------------------------------------------------------------------


def test_results_are_those_of_then(store):
    for name in ("before", "probed"):
        table, wanted = results(name), expected(name)
        assert_same(table[~is_unfinished(table)], wanted[~is_unfinished(wanted)])
        metrics, logged = table.metrics(), expected(f"{name}_metrics")
        metrics = metrics[~metrics["metric"].str.startswith("perf/")]
        order = ["arm", "seed", "metric", "step"]
        assert_same(
            metrics[~is_unfinished(metrics)].sort_values(order), logged[~is_unfinished(logged)].sort_values(order)
        )
        assert set(table.routing()["arm"]) == set(table["arm"]) - {"dense"}
    assert list(results("before.yaml")["status"]).count("finished") == 9


def test_the_report_is_that_of_then(store, capsys):
    for name, complete in (("before", ("gshard", "switch", "hash", "dense")), ("probed", ("none", "recall"))):
        table = Path(f"runs/{name}/smoke/report/table.csv")
        then = table.read_text().splitlines()
        assert report([f"sweep={name}.yaml"]) == 0
        now = table.read_text().splitlines()
        then = [",".join(line.split(",")[: now[0].count(",") + 1]) for line in then]  # without the additions
        assert now[0] == then[0]
        rows_of = {line.split(",")[0]: line for line in now[1:]}
        for line in then[1:]:
            arm = line.split(",")[0]
            assert (rows_of[arm] == line) == (arm in complete)
    assert "No verdict: 1 of 10 trials have no result: moe seed 1 (unfinished)." in " ".join(
        capsys.readouterr().out.split()
    )


# ---- used ------------------------------------------------------------------------------------------------------------


def test_a_run_generates_what_it_generated(store, capsys):
    (folder,) = Path("runs/train").iterdir()
    config = from_plain(yaml.safe_load((folder / "config.yaml").read_text()))
    assert folder_of(config, Path("runs/train")) == folder
    assert finished(folder) is not None
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", "Ban", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == Path("expected/generated.txt").read_text()


def test_an_imported_model_is_exported(store, capsys):
    assert main(["export-hf", "imported", "exported"]) == 0
    assert capsys.readouterr().out == "exported\n"
    weights = dsv2.from_hf("exported").state_dict()
    for name, weight in load_file("imported/model.safetensors").items():
        assert torch.equal(weights.pop(name), weight), name
    assert weights == {}
