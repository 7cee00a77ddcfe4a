"""`python -m dsv2 generate RUN --prompt TEXT`: text written by a trained run or an imported model."""

import argparse
import json
import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from dsv2.commands.deployment import deployment_of, tell_of_cache
from dsv2.config import ConfigError
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Generation, Request
from dsv2.inference.sampling import Sampling
from dsv2.kernels.choice import using
from dsv2.printing import warn
from dsv2.report.terminal import say
from dsv2.training.saved import open_run

MOST_ANSWERS = 1_000_000  # which wait in memory


def generate_command(arguments: argparse.Namespace) -> None:
    """Print the answers: one alone as it is written, several with a line before each, or JSON lines.

    Raises ValueError for settings out of range, and for prompts that are empty, no text or too long.
    """
    sampling = Sampling(**{name: getattr(arguments, name) for name in Sampling.__dataclass_fields__})
    for name, least in (("samples", 1), ("batch_size", 1), ("context", 2)):
        if getattr(arguments, name) is not None and getattr(arguments, name) < least:
            raise ConfigError(name, getattr(arguments, name), f"{least} or more")
    prompts = [arguments.prompt] if arguments.prompts is None else read_prompts(arguments.prompts)
    deployment = deployment_of(arguments)
    reader = open_run(arguments.name, device=arguments.device, deployment=deployment).reader
    context = reader.longest if arguments.context is None else arguments.context
    read = [reader.prompt(prompt) for prompt in prompts]
    if len(prompts) * arguments.samples > MOST_ANSWERS:
        valid = f"at most {MOST_ANSWERS // len(prompts):,} to each of {len(prompts):,} prompts"
        raise ConfigError("samples", arguments.samples, valid)
    for prompt, ids in zip(prompts, read, strict=True):
        if len(ids) >= context:
            valid = f"less than {context} tokens, the context, so that an answer has room; it has {len(ids)}"
            raise ConfigError("prompt", prompt, valid)
    requests = [
        Request(
            prompt=ids,
            max_new_tokens=arguments.max_new_tokens,
            sampling=sampling,
            sample=sample,
            stops=tuple(arguments.stop),
            stop_ids=frozenset([reader.tokenizer.end_id]),
            log_probabilities=arguments.log_probabilities,
        )
        for ids in read
        for sample in range(arguments.samples)
    ]
    tell_of_cache(reader.model.config, deployment)
    needed = max(map(len, read)) + arguments.max_new_tokens
    engine = reader.engine(num_rows=min(arguments.batch_size, len(requests)), max_length=min(needed, context))
    generations = [engine.submit(request) for request in requests]
    with using("auto"):
        if len(generations) == 1 and not arguments.json:
            _print_as_written(engine, prompts[0])
        else:
            _print_in_order(engine, generations, prompts, as_json=arguments.json)
    cut = sum(generation.finish == "capacity" for generation in generations)
    if cut:
        warn(f"{cut} of {len(requests)} answers reached the context of {context} tokens; --context sets another")


def read_prompts(path: str) -> list[str]:
    """Read one prompt per line from a file or, for `-`, standard input. Raises ValueError for an empty one."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8; {error}") from None
    prompts = text.removesuffix("\n").split("\n")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ValueError(f"{path}: line {number} is empty; there must be one prompt per line")
    return prompts


def _print_as_written(engine: Engine, prompt: str) -> None:
    say(prompt, end="")
    for update in engine.run():
        say(update.text, end="")
    say("")


def _print_in_order(engine: Engine, generations: list[Generation], prompts: list[str], *, as_json: bool) -> None:
    """Print every answer as soon as it and those before it have ended."""
    samples = len(generations) // len(prompts)
    printed, tokens, began = 0, 0, time.monotonic()
    shown = sys.stderr.isatty() and not sys.stdout.isatty()  # on a terminal, the answers themselves are the progress
    with tqdm(total=len(generations), unit="answer", disable=not shown) as bar:
        while printed < len(generations):
            tokens += len(engine.step()) if engine.busy else 0
            bar.set_postfix_str(f"{tokens / (time.monotonic() - began):.0f} tokens/s", refresh=False)
            while printed < len(generations) and generations[printed].finish is not None:
                prompt, sample = divmod(printed, samples)
                _print(prompts[prompt], prompt, sample, generations[printed], as_json=as_json)
                printed += 1
                bar.update()


def _print(prompt: str, number: int, sample: int, generation: Generation, *, as_json: bool) -> None:
    if not as_json:
        say(f"--- prompt {number + 1}, sample {sample + 1}: {generation.finish}\n{prompt}{generation.text}")
        return
    record = {"prompt": prompt, "sample": sample, "text": generation.text, "tokens": generation.tokens}
    record["finish_reason"] = generation.finish
    if generation.request.log_probabilities:
        record["log_probabilities"] = [score.log_probability for score in generation.scores]
    say(json.dumps(record, ensure_ascii=False))
