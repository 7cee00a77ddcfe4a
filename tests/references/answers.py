"""What the commands say of a run, to compare before and after."""

from pathlib import Path

import torch

import dsv2
from dsv2.commands.analyse import analyse
from dsv2.commands.evaluate import evaluate_run
from dsv2.explore.subject import open_subject
from dsv2.training.saved import open_run

TASKS = ["cloze", "copying"]


def written(run: Path) -> str:
    """What the model writes after a prompt."""
    reader = open_run(run).reader
    (ids,) = dsv2.generate(reader.model, [torch.tensor(reader.prompt("Ban"))], max_new_tokens=8)
    return reader.tokenizer.decode(ids[len(reader.tokenizer.prefix) :].tolist())


def answers(run: Path, out: Path) -> dict:
    """What the commands say of a run."""
    analyse(run, out=out, only=["shared", "router"])
    return {
        "text": written(run),
        "scores": evaluate_run(run, TASKS)[0],
        "shared": (out / "shared.csv").read_text(),
        "explored": open_subject(open_run(run)).held_out,
    }
