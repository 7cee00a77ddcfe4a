"""What a study has stored, as data frames; damaged files are named, not fatal."""

import json
import math

import pandas as pd
import yaml

from ablations import results
from ablations.report import main
from ablations.studies import study
from ablations.trials.results import accuracy_in_training, results_of, steps_to_half


def test_damaged_results_are_unfinished_trials(capsys):
    trial = study("balance_losses", seeds=[0]).trials[0]
    trial.folder.mkdir(parents=True)
    for content in ('{"status": "fini', "[1]", '{"status": "finished", "metrics": {"val/loss": "low"}}'):
        (trial.folder / "result.json").write_text(content)
        table = results("balance_losses")
        assert list(table["status"]) == ["damaged"] + ["unfinished"] * 29
        assert table["error"][0].startswith(f"{trial.folder / 'result.json'}: damaged, ")
        assert "the run counts as unfinished, and its command trains it again" in capsys.readouterr().err


def test_nothing_of_a_damaged_trial_is_averaged_in(six, here, console, capsys):
    """Here a digit of a logged loss; the same command trains the trial again, and everything is as before."""
    from ablations.running.runner import run_trials

    run_trials(six, workers=1, launcher="local", console=console)
    whole, folder = results_of(six), six.trials[1].folder
    metrics, written = whole.metrics(), (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    place = written.index(b'"val/loss": ') + 14
    (folder / "metrics.jsonl").write_bytes(written[:place] + b"9" + written[place + 1 :])
    table = results_of(six)
    assert list(table["status"]) == ["finished", "damaged", *["finished"] * 4]
    assert table["val/loss"].isna().tolist() == [False, True, *[False] * 4]
    assert set(table.metrics()["arm"]) == set(metrics["arm"]) - {six.trials[1].arm}
    assert set(table.routing()["arm"]) == set(metrics["arm"]) - {six.trials[1].arm}
    assert f"{folder / 'metrics.jsonl'}: not as it was when the run finished" in capsys.readouterr().err
    here.clear()
    assert run_trials(six, workers=1, launcher="local", console=console)
    assert here == [folder]
    untimed = ~metrics["metric"].str.startswith("perf/")
    pd.testing.assert_frame_equal(results_of(six).metrics()[untimed], metrics[untimed])


def test_a_damaged_trial_is_warned_of_once(fill, capsys):
    """Although a command reads it for its status, its values and its provenance."""
    planned = fill("balance_losses", seeds=(0, 1))
    path = planned.trials[0].folder / "result.json"
    path.write_text(path.read_text()[:-20])
    capsys.readouterr()
    planned.remember()
    assert main(["sweep=balance_losses"]) == 0
    assert "No verdict: 1 of" in planned.verdict()
    assert capsys.readouterr().err.count(f"warning: {path}: damaged") == 1


def test_results_from_before_checksums_are_read_and_it_is_said(fill, capsys):
    planned = fill("balance_losses", seeds=(0, 1))
    assert set(results_of(planned)["status"]) == {"finished"}
    assert "note: 12 trials of balance_losses were stored before checksums" in capsys.readouterr().err


def test_tables_leave_out_what_is_damaged(six, capsys):
    folder = six.trials[0].folder
    folder.mkdir(parents=True)
    whole = {"step": 1, "tokens": 7, "val/loss": 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(whole) + '\n{"step": 2, "tok')
    (folder / "routing.parquet").write_bytes(b"PAR1 and no more")
    table = results_of(six)
    assert table.metrics()[["step", "tokens", "value"]].to_numpy().tolist() == [[1, 7, 2.0]]
    assert table.routing().empty
    said = capsys.readouterr().err
    assert "metrics.jsonl: line 2 is damaged" in said
    assert "routing.parquet is damaged" in said


def test_a_row_is_an_arm_and_seed_in_the_order_of_the_study(fill):
    planned = fill("balance_losses", seeds=(0, 1), leave_out=1)
    table = results("balance_losses")
    assert list(zip(table["seed"], table["arm"], strict=True)) == [(trial.seed, trial.arm) for trial in planned.trials]
    assert list(table["fingerprint"]) == [trial.folder.name for trial in planned.trials]
    assert list(table["status"]) == ["finished"] * 11 + ["unfinished"]
    assert table.columns[:8].to_list() == [
        "arm",
        "seed",
        "fingerprint",
        "status",
        "tokens",
        "seconds",
        "error",
        "folder",
    ]
    assert table["val/loss"].notna().sum() == 11


def test_probes_become_columns_of_their_arm(fill):
    fill("attention_dense", "smoke", seeds=(0, 1))
    table = results("attention_dense")
    assert len(table) == 8
    assert set(table["recall/accuracy"]) == {0.9}
    assert set(table["recall/steps_to_half"]) == {20.0}
    assert not math.isnan(table["val/loss"].sum())


def test_a_row_is_finished_once_its_probes_are(fill):
    planned = fill("attention_dense", "smoke", seeds=(0,), leave_out=1)
    probe = planned.trials[-1]
    assert probe.probe == "recall"
    assert list(results_of(planned)["status"]) == ["finished", "finished", "finished", "unfinished"]
    probe.folder.mkdir()
    (probe.folder / "result.json").write_text(json.dumps({"status": "diverged", "error": "in step 2"}))
    last = results_of(planned).iloc[-1]
    assert (last["status"], last["error"]) == ("diverged", "recall: in step 2")


def test_what_changes_in_the_file_later_changes_neither_results_nor_report(mine, fill, tmp_path, capsys, runs):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(mine, sort_keys=False))
    fill(str(file))
    before = results("mine")
    assert list(before["status"]) == ["finished"] * 6
    arms = {"none": {"about": "no loss", "overrides": []}, "other": {"about": "?", "overrides": ["loss.expert=0.5"]}}
    file.write_text(yaml.safe_dump(mine | {"question": "Another?", "arms": arms, "judged": {"val/loss": "higher"}}))
    assert results("mine").equals(before)
    assert results(str(file)).equals(before)
    assert main([f"sweep={file}"]) == 0
    assert "validation loss, expert - better: -0." in capsys.readouterr().out
    report = (runs / "mine" / "smoke" / "report" / "report.md").read_text()
    assert mine["question"] in report
    assert "Another?" not in report
    assert "loss.expert" not in report


# ---- probes ----------------------------------------------------------------------------------------------------------


def test_steps_to_half():
    logged = [{"step": 10}, {"step": 20, "val/accuracy": 0.49}, {"step": 30, "val/accuracy": 0.5}]
    assert steps_to_half(logged) == 30
    assert steps_to_half(logged[:2]) == math.inf


def test_accuracy_in_training():
    logged = [{"step": 10}, {"step": 20, "val/accuracy": 0.25}, {"step": 30, "val/accuracy": 0.75}]
    assert accuracy_in_training(logged) == 0.5
    assert math.isnan(accuracy_in_training([]))
