"""When a run is saved and what never is, and the generators that a resumed run continues from."""

import random
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

import dsv2
from dsv2.storage import checkpoints
from dsv2.storage.space import DiskFull
from dsv2.training import fit
from dsv2.training.callbacks.checkpoint import AtomicCheckpointIO, Checkpointer
from dsv2.training.module import Diverged


class Trainer:
    """As much of Lightning's as a checkpointer asks for."""

    def __init__(self) -> None:
        self.global_step, self.saved = 0, list[Path]()

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


def steps_saved(every: int, num_steps: int, model: nn.Module) -> list[int]:
    """The steps after which a run of `num_steps` is saved."""
    trainer, checkpointer = Trainer(), Checkpointer(Path("folder"), every, num_steps)
    for trainer.global_step in range(1, num_steps + 1):
        checkpointer.on_train_batch_end(trainer, model)
    assert all(path.parent == Path("folder") for path in trainer.saved)
    return [checkpoints.step_of(path) for path in trainer.saved]


# ---- when a run is saved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "num_steps", "expected"), [(4, 12, [4, 8, 12]), (4, 10, [4, 8, 10]), (50, 3, [3]), (1, 2, [1, 2])]
)
def test_a_run_is_saved_every_so_many_steps_and_at_its_end(every: int, num_steps: int, expected: list[int]) -> None:
    assert steps_saved(every, num_steps, nn.Linear(2, 2)) == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_single_weight_that_is_not_finite_is_named_and_not_saved(name: str, value: float) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    trainer, checkpointer = Trainer(), Checkpointer(Path("folder"), 4, 12)
    for trainer.global_step in (1, 3, 5):
        checkpointer.on_train_batch_end(trainer, model)  # weights are read where they would be saved, not at every step
    trainer.global_step = 8
    with pytest.raises(Diverged, match=f"^{name} stopped being finite by step 8$"):
        checkpointer.on_train_batch_end(trainer, model)
    assert not trainer.saved


def test_weights_that_are_not_finite_end_the_run_before_they_are_saved(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step and its gradient were finite; the step itself spoiled a weight."""
    inner = fit.Recorder.on_train_batch_end

    def recorded(self: fit.Recorder, trainer: fit.L.Trainer, module: fit.L.LightningModule, *rest: Any) -> None:
        inner(self, trainer, module, *rest)
        if trainer.global_step == 8:
            with torch.no_grad():
                module.model.embedding[0, 0] = torch.inf

    monkeypatch.setattr(fit.Recorder, "on_train_batch_end", recorded)
    with pytest.raises(Diverged, match="embedding stopped being finite by step 8"):
        fit.fit(dsv2.load(quick), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoints.latest(folder) == folder / "step-000000004.ckpt"


def test_a_failed_save_is_fatal_and_the_old_checkpoint_stays(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dsv2.load(quick)
    inner, saves = torch.save, []

    def full(checkpoint: object, file: BinaryIO) -> None:
        saves.append(file)
        if len(saves) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        inner(checkpoint, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskFull, match=r"step-000000008\.ckpt: no space left on the disk"):
        fit.fit(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoints.latest(folder) == folder / "step-000000004.ckpt"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "step-000000004.ckpt"]


def test_lightning_saves_loads_and_removes_through_checked_files(tmp_path: Path) -> None:
    storage, path = AtomicCheckpointIO(), tmp_path / checkpoints.name_of(4)
    storage.save_checkpoint({"global_step": 4, "state_dict": {"w": torch.arange(3)}}, str(path))
    assert checkpoints.latest(tmp_path) == path  # listed with its checksum
    assert torch.equal(storage.load_checkpoint(str(path))["state_dict"]["w"], torch.arange(3))
    assert storage.load_checkpoint(path, map_location="meta")["state_dict"]["w"].is_meta
    for _ in range(2):
        storage.remove_checkpoint(str(path))
        assert not path.exists()


# ---- generators ------------------------------------------------------------------------------------------------------


def draw() -> tuple[float, float, float, float]:
    """The next number of each generator; numpy's normal numbers come in pairs, of which one waits."""
    return float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn())  # noqa: NPY002


def test_all_generators_continue_where_they_were_saved(tmp_path: Path) -> None:
    """Through a file, and only at the first batch: what draws numbers before it changes nothing, what draws after it
    is not undone."""
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002
    draw()
    path = tmp_path / "step-000000001.ckpt"
    checkpoints.save({"global_step": 1, "state_dict": {}, "state": Checkpointer(tmp_path, 1, 1).state_dict()}, path)
    expected = [draw(), draw()]

    resumed = Checkpointer(tmp_path, 1, 1)
    resumed.load_state_dict(checkpoints.load(path)["state"])
    draw()
    resumed.on_train_batch_start()
    assert draw() == expected[0]
    resumed.on_train_batch_start()
    assert draw() == expected[1]
