"""What the commands say of a run, to compare before and after."""

from pathlib import Path

from dsv2.commands.analyse import analyse
from dsv2.commands.evaluate import evaluate_run
from dsv2.commands.generate import generate_text
from dsv2.explore.subject import open_subject
from dsv2.training.saved import open_run

TASKS = ["cloze", "copying"]


def answers(run: Path, out: Path) -> dict:
    """What the commands say of a run."""
    analyse(run, out=out, only=["shared", "router"])
    return {
        "text": generate_text(run, "Ban", max_new_tokens=8, temperature=0.0, seed=0),
        "scores": evaluate_run(run, TASKS)[0],
        "shared": (out / "shared.csv").read_text(),
        "explored": open_subject(open_run(run)).held_out,
    }
