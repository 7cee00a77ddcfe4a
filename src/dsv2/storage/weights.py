"""The weights in a run directory, of a trained run or of an imported model."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dsv2.storage import checkpoints
from dsv2.storage.rundir import CHECKPOINTS, RESULT, WEIGHTS


class Weights(NamedTuple):
    """Weights by their names in the model."""

    tensors: dict[str, Tensor]
    step: int | None  # after which they were saved; None: those of an imported model
    others: dict[str, Tensor] = {}  # noqa: RUF012, what was trained besides the model, such as a reward model's head


def read_weights(folder: Path, step: int | None = None) -> Weights:
    """Read the newest weights of a run, or those of a step. Raises ValueError if there are none."""
    checkpoints.require_no_pickles()
    path = folder / WEIGHTS
    if path.is_file() and step is None:
        try:
            return Weights(load_file(path), None)
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from None
    if step is None:
        checkpoint = checkpoints.latest(folder / CHECKPOINTS)
        if checkpoint is None:
            raise ValueError(f"{folder}: has neither {WEIGHTS} nor a valid checkpoint; {how_to_train(folder)}")
    elif step in (known := checkpoints.steps(folder / CHECKPOINTS)):
        checkpoint = folder / CHECKPOINTS / checkpoints.name_of(step)
    else:
        kept = ", ".join(map(str, known)) or f"none; {how_to_train(folder)}"
        raise ValueError(f"{folder}: step={step} has no checkpoint; steps that have one: {kept}")
    state = checkpoints.load(checkpoint, map_location="cpu")["state_dict"]
    prefix = "model."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    others = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return Weights(tensors, checkpoints.step_of(checkpoint), others)


def how_to_train(folder: Path) -> str:
    """Say how a run without weights is trained, also one that has finished."""
    first = f"delete {folder / RESULT} and " if (folder / RESULT).exists() else ""
    return f"to train it again, {first}run its command again"


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights: of their names, types, shapes and values, in whatever file they were stored."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
