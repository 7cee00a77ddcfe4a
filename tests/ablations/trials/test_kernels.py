"""A study's trials are computed with one choice of kernels, or it gives no verdict."""

import json

import pytest

from ablations.report import main as report
from ablations.reporting.findings import Findings, looked
from ablations.reporting.summary import said
from ablations.reporting.words import text_of
from ablations.studies import study
from ablations.trials.kernels import like_finished
from ablations.trials.results import results_of
from dsv2.config import ConfigError
from dsv2.storage.rundir import read_result


def record(trial, kernels):
    path = trial.folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": {"kernels": kernels}}))


def results(trials):
    return [read_result(trial.folder) for trial in trials]


def test_trials_that_are_left_take_the_kernels_of_the_finished_ones(fill, pair_file):
    planned = fill(pair_file, leave_out=2)
    *done, left, last = planned.trials
    assert {trial.run.trainer.kernels for trial in like_finished(planned, [left, last], results(done))} == {"torch"}
    for trial in done:
        record(trial, "cpu")
    assert {trial.run.trainer.kernels for trial in like_finished(planned, [left, last], results(done))} == {"cpu"}


@pytest.mark.parametrize(("finished", "asked"), [("torch", "cpu"), ("cpu", "torch"), ("triton", "cpu")])
def test_other_kernels_than_those_of_the_finished_trials_are_refused(fill, pair_file, finished, asked):
    planned = fill(pair_file, leave_out=1)
    for trial in planned.trials[:-1]:
        record(trial, finished)
    other = study(pair_file, seeds=planned.seeds, overrides=[f"trainer.kernels={asked}"])
    valid = rf"auto, or as in the study's finished trials, {finished} \(5\); mixed_kernels=true"
    with pytest.raises(ConfigError, match=rf"trainer\.kernels='{asked}' is not valid: {valid}"):
        like_finished(other, other.trials[-1:], results(planned.trials[:-1]))
    other.mixed_kernels = True
    assert like_finished(other, other.trials[-1:], results(planned.trials[:-1])) == other.trials[-1:]


def test_verdicts_do_not_rest_on_mixed_kernels_unless_told(fill, pair_file, capsys):
    planned = fill(pair_file)
    record(planned.trials[0], "cpu")
    findings = Findings(study=text_of(planned), results=results_of(planned))
    refused = "different kernels, cpu (1), torch (5); mixed_kernels=true gives verdicts on them"
    assert not looked(planned, findings).verdicts
    assert refused in said(looked(planned, findings))[0]
    planned.mixed_kernels = True
    assert looked(planned, findings).verdicts
    assert "mixed_kernels=true" in planned.command

    words = ["sweep=pair", "scale=smoke"]
    assert report(words) == 0
    assert refused in " ".join(capsys.readouterr().out.split())
    assert report([*words, "mixed_kernels=true"]) == 0
    assert "No verdict" not in capsys.readouterr().out
