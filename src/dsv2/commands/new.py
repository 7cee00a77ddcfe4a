"""`python -m dsv2 new study NAME`: the file of a study of your own."""

from pathlib import Path

from dsv2.report.terminal import say
from dsv2.study.new import new_study


def new_command(name: str, out: Path | None) -> None:
    """Write the file, and print its path and the commands that come next."""
    path, sweep = new_study(name, out)
    say(str(path))
    say(f"next: edit it; python -m ablations.run sweep={sweep} dry_run=true; python -m ablations.run sweep={sweep}")
    if out is None:
        say("its W&B sweep file: python -m ablations.wandb_sweeps")
