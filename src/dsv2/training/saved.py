"""Reading back what a run directory holds: its typed config and its newest weights."""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from dsv2.config import structure
from dsv2.models.transformer import Transformer
from dsv2.storage import checkpoints
from dsv2.training.run import Run, from_plain

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"  # of an imported model; a trained one has checkpoints


def load_config(folder: Path) -> dict[str, Any]:
    """The values of `config.yaml`. ValueError, naming the file, where it is missing or no config."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: not a run directory, it has no {CONFIG}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict) or "model" not in values:
        raise ValueError(f"{path}: has no model")
    return values


def load_run(folder: Path) -> Run.Config:
    """The typed config of a trained run."""
    return from_plain(load_config(folder))


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Our parameter names to tensors, from `model.safetensors` or the newest sound checkpoint, else ValueError."""
    if (path := folder / WEIGHTS).is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from None
    newest = checkpoints.latest(folder / "checkpoints")
    if newest is None:
        raise ValueError(f"{folder}: has neither {WEIGHTS} nor a sound checkpoint")
    return _weights_of(newest)


def _weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = checkpoints.load(checkpoint, map_location="cpu")["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def load_model(folder: Path, step: int | None = None) -> Transformer:
    """The model of a trained or imported run, in evaluation mode, in the precision it was saved in.

    `step` takes the checkpoint of that step, as listed by `checkpoints.steps`, instead of the newest weights.
    """
    config = structure(load_config(folder)["model"], Transformer.Config, "model")
    weights = load_weights(folder) if step is None else _weights_of(folder / "checkpoints" / checkpoints.name_of(step))
    with torch.device("meta"):
        model: Transformer = config.build()
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: {error}") from None
    return model.eval()
