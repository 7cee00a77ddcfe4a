"""A study stops adding seeds when its contrasts are decided."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from ablations.reporting.early import UntilDecided
from ablations.running import runner
from ablations.running.worker import Outcome
from ablations.studies import run_study, study
from ablations.trials.looks import look_at
from ablations.trials.trials import stored
from dsv2.config import ConfigError

SEEDS = tuple(range(8))

TOLD = re.compile(r"-s\d+ finished")  # the line of a trial that has ended


@pytest.fixture
def trained(monkeypatch, console):
    """Runs a study with made-up results, the second arm's higher by `more(seed)`; returns what was trained.

    A trial begins when the runner has told of all trials before it.
    """

    ended = Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *arguments, **settings):
            ended.set()
            super().shutdown(*arguments, **settings)

    def trained(planned, more):
        names = []

        def run_trial(values, folder, since):
            trial = next(trial for trial in planned.trials if trial.folder.resolve() == folder)
            while len(TOLD.findall(console.file.getvalue())) < len(names):
                if ended.wait(0.01):
                    return Outcome("interrupted", "the study has ended")
            names.append((trial.seed, trial.arm))
            folder.mkdir(parents=True)
            value = 5 + 0.02 * trial.seed + more(trial.seed) * (trial.arm == list(planned.arms)[1])
            metrics = dict.fromkeys(planned.file.judged, value) | {"val/loss": value}
            result = {"status": "finished", "metrics": metrics, "tokens": 1000, "seconds": 1.0}
            (folder / "result.json").write_text(json.dumps(result))
            return Outcome("finished")

        monkeypatch.setattr(runner, "executor", lambda *_, **__: Pool(1))
        monkeypatch.setattr(runner, "run_trial", run_trial)
        assert run_study(planned, workers=1, launcher="local", console=console, until_decided=True)
        return names

    return trained


def lower(seed):
    return -1 - 0.01 * seed


def equal(seed):
    return 0.001 * (-1) ** seed


@pytest.mark.parametrize(("more", "word"), [(lower, "better"), (equal, "equivalent")])
def test_no_more_seeds_are_trained_once_every_contrast_is_decided(trained, mine, console, more, word):
    planned = study(mine | {"seeds": 8, "margin": {"val/loss": 0.02}}, seeds=SEEDS)
    names = trained(planned, more)
    reported = stored("mine")
    seeds = list(reported.seeds)
    assert 2 < len(seeds) < 8
    assert len(names) <= 2 * len(seeds) + 1  # one more had begun
    said = console.file.getvalue()
    assert f"every contrast is decided after {len(seeds)} seeds; the others are not trained" in said
    assert word in said
    assert look_at(reported).number == len(seeds) - 1  # at 2 seeds, 3, ...: each of them has spent its part
    assert reported.report_folder.joinpath("report.html").is_file()


def test_a_study_that_stays_undecided_trains_all_seeds(trained, mine, console):
    assert len(trained(study(mine | {"seeds": 4}, seeds=SEEDS[:4]), lambda seed: 100 * equal(seed))) == 8
    assert "every contrast is decided" not in console.file.getvalue()


def test_looks_are_those_of_the_studys_file(trained, mine):
    planned = study(mine | {"seeds": 8, "looks": [5, 8]}, seeds=SEEDS)
    trained(planned, lower)
    assert stored("mine").seeds == SEEDS[:5]


def test_a_study_without_contrasts_has_nothing_to_decide(mine, console):
    mine["arms"]["expert"]["baseline"] = "expert"
    with pytest.raises(ConfigError, match=r"until_decided=True is not valid: false, since mine compares no arm"):
        UntilDecided(study(mine), console)
