"""`python -m dsv2 tasks RUN`: how hard the instructions of its data are for its model."""

import argparse
import json

from dsv2.alignment.difficulty import TEACHES, difficulty
from dsv2.config import ConfigError
from dsv2.data.chats import Chats
from dsv2.evaluation.following import verified
from dsv2.evaluation.verifiers import Judge
from dsv2.inference.replies import reply_to
from dsv2.inference.sampling import Sampling
from dsv2.report.terminal import add_row, open_console, open_table, say
from dsv2.training.saved import open_run


def tasks_command(arguments: argparse.Namespace) -> None:
    """Print p@1, pass@G and the share of prompts without variance, by task."""
    for option in ("prompts", "samples", "max_new_tokens"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option.replace('_', '-')}", getattr(arguments, option), "1 or more")
    sampling = Sampling(temperature=arguments.temperature, seed=arguments.seed)
    run = open_run(arguments.name, text=arguments.text)
    if not isinstance(source := run.source, Chats) or not source.prompts:
        valid = "conversations with verifiers, such as --text data=instructions"
        raise ValueError(f"{run.folder}: tasks need {valid}, which its data are not")
    prompts = source.prompts[: arguments.prompts]
    replies = reply_to(
        run.model,
        source.store.tokenizer,
        [prompt.ids for prompt in prompts],
        samples=arguments.samples,
        sampling=sampling,
        max_new_tokens=arguments.max_new_tokens,
        stop_ids=source.stop_ids,
    )
    with Judge() as judge:
        table = difficulty(verified(judge, prompts, replies), source.domains)
    rows = table.to_dict("records")
    if arguments.json:
        for row in rows:
            say(json.dumps(row))
        return
    shown = open_table(["task", "prompts", "p@1", f"pass@{arguments.samples}", "no variance", "teaches"])
    for row in rows:
        numbers = [f"{row[name]:.3f}" for name in ("p_at_1", "pass_at_g", "zero_variance")]
        add_row(shown, [row["task"], str(row["prompts"]), *numbers, "yes" if row["teaches"] else "no"])
    open_console().print(shown)
    low, high = TEACHES
    say(f"Groups without variance teach nothing; tasks with p@1 from {low} to {high} have fewest of them.")
