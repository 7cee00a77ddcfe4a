"""Typed configuration: Hydra composes YAML, `structure` turns the result into frozen dataclasses.

Every component declares `Component.Config`, a frozen keyword-only dataclass that derives from `ConfigBase` and builds
the component with `config.build(...)`. A YAML node names its dataclass in `_target_`; only such classes
inside this package are accepted. All errors are raised as one `ConfigError` that names the full key, the value and what
would be valid.
"""

import dataclasses
import difflib
import hashlib
import importlib
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dsv2.annotations import in_words
from dsv2.printing import shortened

PACKAGE = "dsv2"
TARGET = re.compile(rf"{PACKAGE}(\.\w+)+\.Config")  # what a `_target_` may look like
NAME = re.compile(r"\w[\w.+-]{0,99}")  # of studies, scales and arms: becomes part of file names
_HERE = Path(__file__).resolve().parent
# A wheel ships the YAML inside the package; a checkout keeps it at the top level.
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parents[1] / "configs"

MOVED = {  # paths of config classes in older runs -> current paths
    "dsv2.run.Run.Config": "dsv2.training.run.Run.Config",
    "dsv2.training.loggers.Logging.Config": "dsv2.training.run.Logging.Config",
    "dsv2.training.loggers.Wandb.Config": "dsv2.training.run.Wandb.Config",
    "dsv2.training.settings.Training.Config": "dsv2.training.run.Training.Config",
}
RETIRED = {  # settings in older runs that are no more; they said where a run happens, and not what it computes
    "dsv2.training.run.Training.Config": ("devices", "strategy"),
}


class ConfigError(ValueError):
    """A configuration value that cannot be used: names the key, the value and what would be valid."""

    def __init__(self, key: str, value: Any, valid: str) -> None:
        super().__init__(f"{shortened(key)}={shortened(_shown(value))} is not valid: {valid}")
        self.key, self.value, self.valid = key, value, valid


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes out no integers of more than 4,300 digits
        return "a number of thousands of digits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigBase:
    """Base of every typed configuration. Subclasses validate themselves in `__post_init__` with `require`."""

    def require(self, condition: bool, field: str, valid: str) -> None:
        """Raise `ConfigError` for `field` (dotted for a nested one) unless `condition` holds."""
        if not condition:
            value: Any = self
            for part in field.split("."):
                value = getattr(value, part)
            raise ConfigError(field, value, valid)


def setting(default: Any) -> Any:
    """Declare a field that affects where or how a run happens, not its result; it is left out of the fingerprint."""
    return dataclasses.field(default=default, metadata={"fingerprint": False})


def settings_of(cls: type[ConfigBase]) -> tuple[str, ...]:
    """Return the names of the fields that are declared with `setting`."""
    return tuple(field.name for field in dataclasses.fields(cls) if field.metadata.get("fingerprint") is False)


def added(default: Any) -> Any:
    """Declare a field newer than stored runs; at its default it is left out of the fingerprint, so that theirs hold."""
    return dataclasses.field(default=default, metadata={"fingerprint": "unless default"})


# ---- from YAML to typed ----------------------------------------------------------------------------------------------


def structure(node: Mapping[str, Any], expected: Any = ConfigBase, key: str = "") -> Any:
    """Turn a plain nested mapping into the typed config that its `_target_` names.

    `expected` is the field's annotation; the target must be one of its config classes. Raises `ConfigError`.
    """
    cls = _target(node, expected, key)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    prefix = f"{key}." if key else ""
    values, retired = {}, RETIRED.get(target_name(cls), ())
    _require_text(node, key)
    for name, value in node.items():
        if name == "_target_" or name in retired:
            continue
        if name not in fields:
            raise ConfigError(prefix + name, value, one_of(name, fields))
        if config_classes(hints[name]) and isinstance(value, Mapping):
            values[name] = structure(value, hints[name], prefix + name)
        else:
            values[name] = _leaf(value, hints[name], prefix + name)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(prefix + name, None, f"a value is required, {_wanted(hints[name], prefix + name)}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(prefix + error.key, error.value, error.valid) from None


def _target(node: Mapping[str, Any], expected: Any, key: str) -> type[ConfigBase]:
    allowed = config_classes(expected)
    name = node.get("_target_")
    at = f"{key}._target_" if key else "_target_"
    if name is None:
        if len(allowed) == 1 and allowed[0] is not ConfigBase:
            return allowed[0]
        raise ConfigError(at, None, f"name one of {_names(allowed)}")
    inside = isinstance(name, str) and TARGET.fullmatch(name)
    try:
        cls = _import(MOVED.get(name, name)) if inside else None
    except ModuleNotFoundError as error:
        raise ConfigError(at, name, f"its module needs the package {error.name}, which is not installed") from None
    if not (isinstance(cls, type) and issubclass(cls, ConfigBase) and issubclass(cls, tuple(allowed))):
        raise ConfigError(at, name, f"only configs of this package are accepted; here one of {_names(allowed)}")
    return cls


def _import(name: str) -> Any:
    """Import the object at a dotted name, which may be a nested class; None if there is none."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:split])
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # a dependency is missing; the name is right
            continue
        for part in parts[split:]:
            value = getattr(value, part, None)
        return value
    return None


def config_classes(annotation: Any) -> list[type[ConfigBase]]:
    """Return the config classes that a field's annotation allows; empty for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigBase):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [cls for part in typing.get_args(annotation) for cls in config_classes(part)]
    return []


def options(key: str) -> list[str]:
    """Return the choices of a group, written with dots or slashes; empty if there is no such group."""
    return sorted(path.stem for path in (CONFIG_DIR / key.replace(".", "/")).glob("*.yaml"))


def keys_of(key: str, known: Collection[str]) -> str:
    """Say how a node with keys of its own is written: as a choice of its group, or key by key."""
    choices = options(key)
    group = f"a choice of its group, {key.replace('.', '/')}={'|'.join(choices)}" if choices else ""
    keys = f"keys of its own, as in {key}.{next(iter(known))}=...; they are {', '.join(known)}" if known else ""
    return ", or ".join(filter(None, (group, keys)))


def _wanted(annotation: Any, key: str) -> str:
    """Say what a field takes."""
    classes = config_classes(annotation)
    if not classes:
        return in_words(annotation)
    known = [field.name for field in dataclasses.fields(classes[0])] if len(classes) == 1 else []
    null = " or null" if type(None) in typing.get_args(annotation) else ""
    return (keys_of(key, known) or f"one of {_names(classes)}") + null


def _require_text(node: Mapping[Any, Any], at: str) -> None:
    """Raise `ConfigError` for a key that YAML read as a number, a boolean or null."""
    for name in node:
        if not isinstance(name, str):
            written = "null" if name is None else str(name).lower()
            raise ConfigError(
                at or "key", name, f'keys that are text; a name that reads as something else is quoted: "{written}"'
            )


def _leaf(value: Any, annotation: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        _require_text(value, key)

    def frozen(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: frozen(part) for name, part in item.items()}
        return tuple(map(frozen, item)) if isinstance(item, list) else item

    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except Exception:  # a nested dataclass annotation, for which pydantic accepts no config
        adapter = TypeAdapter(annotation)
    try:
        valid = adapter.validate_python(frozen(value))
    except ValidationError as error:
        valid = _wanted(annotation, key)
        fixed = typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation)
        one = not isinstance(value, list | Mapping | None) and any(e["type"] == "tuple_type" for e in error.errors())
        if one and not fixed:
            valid += f", as in {key}=[{shortened(str(value))}]"
        if isinstance(value, bool | int | float) and any(e["type"] == "string_type" for e in error.errors()):
            valid += f"; text that reads as something else is quoted, as in '{key}=\"{value}\"'"
        raise ConfigError(key, value, valid) from None
    if any(isinstance(part, int) and abs(part) >= 2**64 for part in _parts(valid)):
        raise ConfigError(key, value, "whole numbers below 2^64")
    if any(isinstance(part, str) and not _is_unicode(part) for part in _parts(valid)):
        raise ConfigError(key, value, "text in UTF-8")
    return valid


def _parts(value: Any) -> Iterator[Any]:
    """Yield the plain values within tuples and mappings."""
    if isinstance(value, tuple | dict):
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _parts(part)
    else:
        yield value


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded, unlike that of arguments that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(classes: Sequence[type[ConfigBase]]) -> str:
    return ", ".join(target_name(cls) for cls in classes)


def one_of(name: str, valid: Collection[str]) -> str:
    """Return the explanation of an unknown key: a close match, and all valid keys."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key; {hint}valid keys are {', '.join(sorted(valid))}"


# ---- from typed to plain ---------------------------------------------------------------------------------------------


def target_name(cls: type[ConfigBase]) -> str:
    """Return the `_target_` of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def class_name(cls: type[ConfigBase]) -> str:
    """Return the name of a class in fingerprints, as in `MLA.Config`; unique, and independent of its module."""
    return cls.__qualname__


def former_name(cls: type[ConfigBase]) -> str:
    """Return the dotted path of a class as used in fingerprints until November 2026."""
    now = target_name(cls)
    return next((old for old, new in MOVED.items() if new == now), now)


Naming = Callable[[type[ConfigBase]], str]


def plain(config: ConfigBase, *, identity: bool = False, naming: Naming = target_name) -> dict[str, Any]:
    """Convert a config to JSON-ready values with `_target_`s; `identity` keeps only what affects the result."""

    def value(item: Any) -> Any:
        if isinstance(item, ConfigBase):
            return plain(item, identity=identity, naming=naming)
        return [value(part) for part in item] if isinstance(item, tuple) else item

    def counts(field: dataclasses.Field[Any]) -> bool:
        when: bool | str = field.metadata.get("fingerprint", True)
        return getattr(config, field.name) != field.default if when == "unless default" else bool(when)

    kept = (field for field in dataclasses.fields(config) if not identity or counts(field))
    return {"_target_": naming(type(config))} | {field.name: value(getattr(config, field.name)) for field in kept}


def digest(*parts: Any) -> str:
    """Hash JSON-ready values to 16 hex digits, independently of the order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
