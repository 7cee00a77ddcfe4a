"""Which executor a launcher is, and that all of them train the same trial."""

import sys

import pytest
import torch

from ablations.running import launch
from ablations.running.pool import LocalPool
from ablations.running.worker import Outcome, run_trial
from dsv2.config import ConfigError, plain
from dsv2.training import machine
from dsv2.training.fit import fit
from tests.references.runs import rows


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"launcher='{launcher}' is not valid: .*pip install 'dsv2\[launchers\]'"):
        launch.executor(launcher, workers=1, folder=tmp_path, trials=1)


def test_launchers_are_known_by_name(tmp_path):
    pool = launch.executor("local", workers=1, folder=tmp_path, trials=1)
    pool.shutdown()
    assert isinstance(pool, LocalPool)
    with pytest.raises(ConfigError, match="launcher='cloud' is not valid: local, slurm or ray"):
        launch.executor("cloud", workers=1, folder=tmp_path, trials=1)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_launchers_train_the_same_trial(six, tmp_path, monkeypatch, launcher, package):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'dsv2[launchers]'")
    monkeypatch.setenv("DSV2_SLURM_CLUSTER", "local")
    trial = six.trials[0]
    pool = launch.executor(launcher, workers=1, folder=tmp_path, trials=1)
    try:
        assert pool.submit(run_trial, plain(trial.run), trial.folder, 0.0).result(120) == Outcome("finished")
    finally:
        pool.shutdown(cancel_futures=True)
    machine.prepare()
    torch.set_num_threads(1)
    fit(trial.run, tmp_path / "here")
    assert rows(trial.folder) == rows(tmp_path / "here")
