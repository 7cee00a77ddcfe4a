"""The kernels that a run is computed with: recorded, the same to its end, refused where they cannot be had."""

import pytest

import dsv2
from dsv2.config import ConfigError
from dsv2.kernels.unavailable import Unavailable
from dsv2.training import fit
from dsv2.training.module import Module


def test_compiled_kernels_train_the_same_run_and_are_recorded(quick, tmp_path):
    """The choice is not part of the fingerprint: 12 steps agree within rounding."""
    losses = {}
    for kernels in ("torch", "cpu"):
        run = dsv2.load([*quick, f"trainer.kernels={kernels}"])
        result = fit.fit(run, tmp_path / kernels)
        assert result["provenance"]["kernels"] == kernels
        losses[run.fingerprint()] = [*losses.get(run.fingerprint(), []), result["metrics"]["val/loss"]]
    ((plain_loss, compiled_loss),) = losses.values()
    assert abs(plain_loss - compiled_loss) < 1e-5 * plain_loss


def test_compiled_kernels_that_cannot_be_had_are_refused(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("dsv2.kernels.choice.library.load", lambda: (_ for _ in ()).throw(Unavailable("no compiler")))
    with pytest.raises(ConfigError, match=r"trainer\.kernels='cpu' is not valid: torch or auto, since no compiler"):
        fit.fit(dsv2.load([*quick, "trainer.kernels=cpu"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Stopped(Module):
    """A module that stops at step 9, one after a checkpoint."""

    def on_train_batch_end(self, *_):
        if self.global_step == 9:
            raise KeyboardInterrupt


@pytest.mark.parametrize("begun", ["torch", "cpu"])
def test_a_run_goes_on_with_the_kernels_that_it_was_begun_with(quick, tmp_path, begun):
    other = "torch" if begun == "cpu" else "cpu"
    with pytest.raises(KeyboardInterrupt):
        fit.fit(dsv2.load([*quick, f"trainer.kernels={begun}"]), tmp_path, module=Stopped)
    valid = f"auto or {begun}, with which the run in .* was begun; delete that folder to begin anew"
    with pytest.raises(ConfigError, match=rf"trainer\.kernels='{other}' is not valid: {valid}"):
        fit.fit(dsv2.load([*quick, f"trainer.kernels={other}"]), tmp_path)
    assert fit.fit(dsv2.load([*quick, "trainer.kernels=auto"]), tmp_path)["provenance"]["kernels"] == begun


@pytest.mark.parametrize("stored", ["trainer: {tokens: 1}", "trainer: {kernels: abacus}", "[", ""])
def test_a_run_from_before_kernels_were_chosen_goes_on_in_plain_torch(quick, tmp_path, stored):
    with pytest.raises(KeyboardInterrupt):
        fit.fit(dsv2.load([*quick, "trainer.kernels=torch"]), tmp_path, module=Stopped)
    (tmp_path / "config.yaml").write_text(stored)
    assert fit.fit(dsv2.load(quick), tmp_path)["provenance"]["kernels"] == "torch"
