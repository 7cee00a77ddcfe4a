"""Verdicts on replies: by ground truth, or by running them in a sandbox."""

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple, Self

from dsv2.data.verification import Answer, Calls, Checks, Verifier
from dsv2.evaluation.sandbox import Limits, Outcome, Program, Sandbox, SandboxBroken, literal

_FENCED = re.compile(r"```[^\n]*\n(.*?)\n?```", re.DOTALL)


class Verdict(NamedTuple):
    """What a verifier says of a reply."""

    score: float | None  # 1: right, 0: wrong; None: nothing is known, which is not the reply's fault
    error: str | None = None  # why it is wrong or unknown, as far as a program told


class Judge:
    """Gives verdicts. Use as a context manager, or `close` it; the sandbox is started when first needed."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits
        self._sandbox: Sandbox | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def verdicts(self, replies: Sequence[str], verifiers: Sequence[Verifier]) -> list[Verdict]:
        """Return the verdict on each reply, by its own verifier."""
        pairs = list(zip(replies, verifiers, strict=True))
        verdicts = {
            place: Verdict(float(reply.strip() == verifier.answer.strip()))
            for place, (reply, verifier) in enumerate(pairs)
            if isinstance(verifier, Answer)
        }
        programs = {
            place: _program(reply, verifier)
            for place, (reply, verifier) in enumerate(pairs)
            if not isinstance(verifier, Answer)
        }
        if programs:
            verdicts |= self._run(programs, verifiers)
        return [verdicts[place] for place in range(len(pairs))]

    def _run(self, programs: dict[int, Program], verifiers: Sequence[Verifier]) -> dict[int, Verdict]:
        try:
            self._sandbox = self._sandbox or Sandbox(self.limits)
            outcomes = self._sandbox.run(list(programs.values()))
        except SandboxBroken as error:
            return {place: Verdict(None, str(error)) for place in programs}
        return {place: _verdict(outcome, verifiers[place]) for place, outcome in zip(programs, outcomes, strict=True)}


def code_of(reply: str) -> str:
    """Return the Python of a reply: its first fenced block, or all of it."""
    fenced = _FENCED.search(reply)
    return fenced[1] if fenced else reply.strip()


def _program(reply: str, verifier: Calls | Checks) -> Program:
    if isinstance(verifier, Checks):
        return Program(code_of(reply), checks=verifier.checks)
    return Program(verifier.template.replace("{reply}", code_of(reply)), tuple(verifier.calls))


def _verdict(outcome: Outcome, verifier: Verifier) -> Verdict:
    if isinstance(verifier, Calls):
        expected = tuple(literal(ast.literal_eval(value)) for value in verifier.calls.values())
        right = outcome.ended == "ok" and outcome.values == expected
    else:
        right = outcome.passed
    return Verdict(float(right), outcome.error)
