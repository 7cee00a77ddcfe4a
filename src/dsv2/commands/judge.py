"""`python -m dsv2 judge RUN OTHER`: whose answers to held-out prompts a judge prefers."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from dsv2.config import ConfigError
from dsv2.data.chats import Chats, Prompt
from dsv2.data.verification import Answer
from dsv2.evaluation.judges.endpoint import EndpointJudge
from dsv2.evaluation.judges.protocol import (
    Judged,
    PairJudge,
    Question,
    agreement_of,
    judged,
    length_controlled,
    win_rate,
)
from dsv2.evaluation.judges.rules import RuleJudge
from dsv2.inference.replies import reply_to
from dsv2.inference.sampling import Sampling
from dsv2.report.terminal import add_row, open_console, open_table, say
from dsv2.statistics.paired import Interval
from dsv2.training.saved import SavedRun, open_run

RULE = "rule"


def judge_command(arguments: argparse.Namespace) -> None:
    """Print the win rate of RUN against OTHER by each judge, and how far two judges agree."""
    for option in ("prompts", "max_new_tokens"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option.replace('_', '-')}", getattr(arguments, option), "1 or more")
    judges = {by: _judge(by, arguments.model) for by in dict.fromkeys(arguments.by)}
    runs = [open_run(name, text=arguments.text) for name in (arguments.name, arguments.other)]
    source = runs[0].source
    if not isinstance(source, Chats) or not source.held_out_prompts:
        valid = "conversations with verifiers, such as --text data=instructions"
        raise ValueError(f"{runs[0].folder}: judging needs {valid}, which its data are not")
    if runs[0].tokenizer.hash != runs[1].tokenizer.hash:
        raise ConfigError("OTHER", arguments.other, f"a run with the tokenizer of {arguments.name}")
    prompts = source.held_out_prompts[: arguments.prompts]
    questions = [_question(source, prompt) for prompt in prompts]
    ours, others = (_answers(run, source, prompts, arguments.max_new_tokens) for run in runs)
    pairs = {by: judged(judge, questions, ours, others) for by, judge in judges.items()}
    rows = [_row(by, pairs[by], ours, others) for by in judges]
    if arguments.json:
        for row in rows:
            say(json.dumps(row))
    else:
        shown = open_table(
            ["judge", "win rate", "length-controlled", "judged", "ties", "swayed", "errors"], text=["judge"]
        )
        for row in rows:
            rate = _with_interval(row["rate"], Interval(row["low"], row["high"]))
            counts = [str(row[name]) for name in ("n", "ties", "swayed", "errors")]
            add_row(shown, [row["judge"], rate, f"{row['length_controlled']:.3f}", *counts])
        open_console().print(shown)
    if len(judges) == 2:
        found = agreement_of(*pairs.values())
        share = _with_interval(found.share, found.interval)
        say(f"The two judges agree on {share} of {found.n} pairs; by chance they would on {found.chance:.3f}.")


def _judge(by: str, model: str) -> PairJudge:
    if by == RULE:
        return RuleJudge()
    try:
        return EndpointJudge(url=by, model=model)
    except ConfigError as error:
        option = {"url": "--by", "model": "--model"}[error.key]
        raise ConfigError(
            option, error.value, f"{RULE}, or {error.valid}" if option == "--by" else error.valid
        ) from None


def _question(source: Chats, prompt: Prompt) -> Question:
    """Return a prompt as its text; only an answer that is a text is known to a judge."""
    text = source.store.tokenizer.decode(prompt.ids)
    return Question(text, prompt.verifier.answer if isinstance(prompt.verifier, Answer) else None)


def _answers(run: SavedRun, source: Chats, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
    """Return the greedy reply of a run's model to each prompt."""
    groups = reply_to(
        run.model,
        run.tokenizer,
        [prompt.ids for prompt in prompts],
        samples=1,
        sampling=Sampling(temperature=0.0),
        max_new_tokens=max_new_tokens,
        stop_ids=source.stop_ids,
    )
    return [group[0].text for group in groups]


def _row(by: str, pairs: Sequence[Judged], ours: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    found = win_rate(pairs)
    values: dict[str, Any] = {"judge": by, "rate": found.rate, "low": found.interval.low, "high": found.interval.high}
    counts = {name: getattr(found, name) for name in ("n", "ties", "swayed", "errors")}
    return values | {"length_controlled": length_controlled(pairs, ours, others)} | counts


def _with_interval(share: float, interval: Interval) -> str:
    return f"{share:.3f}" if math.isnan(interval.low) else f"{share:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
