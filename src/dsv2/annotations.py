"""The types of fields in words, for messages that say what would be valid."""

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts", Any: "values"}


def in_words(annotation: Any) -> str:
    """Return what a field of this type takes, as in `a list of 2 numbers`; of an unknown type its name."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return "a value"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        return _either([str(value) for value in arguments])
    if origin in (typing.Union, types.UnionType):
        return _either([in_words(part) for part in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {_several(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} {_several(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping from {in_words(arguments[0])} to {in_words(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _several(annotation: Any) -> str:
    return _SEVERAL.get(annotation) or f"entries, each {in_words(annotation)}"


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
