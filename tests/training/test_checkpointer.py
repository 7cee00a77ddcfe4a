"""The generators that a resumed run continues from."""

import random
from pathlib import Path

import numpy as np
import torch

from dsv2.storage import checkpoints
from dsv2.training.callbacks.checkpoint import Checkpointer


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
    checkpoints.save({"global_step": 1, "state": Checkpointer(tmp_path, 1, 1).state_dict()}, path)
    expected = [draw(), draw()]

    resumed = Checkpointer(tmp_path, 1, 1)
    resumed.load_state_dict(checkpoints.load(path)["state"])
    draw()
    resumed.on_train_batch_start()
    assert draw() == expected[0]
    resumed.on_train_batch_start()
    assert draw() == expected[1]
