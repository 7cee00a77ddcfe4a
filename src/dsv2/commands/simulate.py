"""`python -m dsv2 simulate pipeline|traffic|hours`: what training over many devices costs, without any of them."""

import argparse

from dsv2.commands import hours, pipeline, traffic

SUBJECTS = {
    "pipeline": ("schedules in time: bubbles, peak activations, a timeline", pipeline.add_arguments, pipeline.pipeline),
    "traffic": ("expert parallelism: bytes, time, the slowest device", traffic.add_arguments, traffic.traffic),
    "hours": (
        "GPU hours: what a published number implies, and other numbers of GPUs",
        hours.add_arguments,
        hours.hours,
    ),
}


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """Declare the subjects and their arguments."""
    subjects = parse.add_subparsers(dest="subject", required=True)
    for name, (words, add, run) in SUBJECTS.items():
        subject = subjects.add_parser(name, help=words)
        add(subject)
        subject.set_defaults(run=run)
