"""What a reply is verified by: ground truth, or a program that has to work.

`dsv2.evaluation.verifiers` applies it.
"""

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

from dsv2.printing import shortened


class Answer(NamedTuple):
    """The reply is this text, apart from space around it."""

    answer: str


class Calls(NamedTuple):
    """The reply is Python code, in whose namespace expressions have these values; they never enter the sandbox."""

    calls: dict[str, str]  # expression -> its value, as a literal
    template: str = "{reply}"  # the program, with the code of the reply for {reply}


class Checks(NamedTuple):
    """The reply is Python code, in whose namespace this code raises nothing."""

    checks: str


Verifier = Answer | Calls | Checks
KINDS: dict[str, type[Verifier]] = {"answer": Answer, "calls": Calls, "checks": Checks}  # by their first field


def to_json(verifier: Verifier | None) -> dict[str, Any] | None:
    """Return a verifier as it stands in a file."""
    return None if verifier is None else verifier._asdict()


def from_json(values: Any) -> Verifier | None:
    """Read a verifier: `{"answer": TEXT}`, `{"calls": {EXPRESSION: LITERAL}, "template": CODE}` or `{"checks": CODE}`.

    Raises ValueError for anything else.
    """
    if values is None:
        return None
    kinds = [KINDS[name] for name in KINDS if isinstance(values, Mapping) and name in values]
    if len(kinds) != 1 or not set(values) <= set(kinds[0]._fields):
        raise ValueError(f"verifier={shortened(repr(values))}: must have one of {', '.join(KINDS)}")
    verifier = kinds[0](**values)
    for name, value in verifier._asdict().items():
        if name == "calls":
            _require_calls(value)
        elif not isinstance(value, str):
            raise ValueError(f"verifier.{name}={shortened(repr(value))}: must be a string")
    if isinstance(verifier, Calls) and "{reply}" not in verifier.template:
        raise ValueError(f"verifier.template={shortened(repr(verifier.template))}: must contain {{reply}}")
    return verifier


def _require_calls(calls: Any) -> None:
    """Raise ValueError unless expressions are mapped to literals."""
    if not isinstance(calls, Mapping) or not calls:
        raise ValueError(f"verifier.calls={shortened(repr(calls))}: must map at least one expression to its value")
    for expression, value in calls.items():
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            valid = 'must be a Python literal in a string, as in "[1, 2]"'
            raise ValueError(f"verifier.calls[{expression!r}]={shortened(repr(value))}: {valid}") from None
