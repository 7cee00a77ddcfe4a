"""Composition of YAML and overrides to plain values by Hydra, with its errors as `ConfigError`."""

import pickle
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dsv2.config import CONFIG_DIR, ConfigError, keys_of, one_of, options
from dsv2.printing import shortened

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def register_resolvers() -> None:
    """Register the resolvers `${times:KEY,FACTOR}` and `${plus:KEY,TERM}`, for values relative to another.

    With them, studies can state changes independently of the scale, such as half of `model.shape.expert_dim`.
    """
    from omegaconf import OmegaConf

    def number(key: str, root: Any) -> int | float:
        value = OmegaConf.select(root, key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(key, value, "a number, since another value is computed from it")
        return value

    def times(key: str, factor: float, *, _root_: Any) -> int | float:
        value = number(key, _root_)
        product = value * factor
        if isinstance(value, float):
            return product
        if product != int(product):
            raise ConfigError(key, value, f"a multiple of {1 / factor:g}, since it is multiplied by {factor:g}")
        return int(product)

    def plus(key: str, term: float, *, _root_: Any) -> int | float:
        return number(key, _root_) + term

    OmegaConf.register_new_resolver("times", times, replace=True)
    OmegaConf.register_new_resolver("plus", plus, replace=True)


def compose(overrides: Sequence[str], name: str = "run") -> dict[str, Any]:
    """Compose `configs/<name>.yaml` with Hydra overrides into plain values, interpolations resolved.

    Raises `ConfigError` for an unknown key, an unknown choice of a group or an override that does not parse.
    """
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    parsed = checked(overrides)
    _require_single(parsed)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            composed = resolved(_composed(parsed, name))
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last for the index of a list
            raise _explain(error, parsed, name) from None
    return without_shape(composed)


def resolved(composed: "DictConfig") -> dict[str, Any]:
    """Return plain values with interpolations resolved. Raises `ConfigError` for one that cannot be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except (InterpolationResolutionError, MissingMandatoryValue) as error:
        why = re.sub(r"\A\w+ (raised )?while resolving interpolation: ", "", str(error.msg or error).splitlines()[0])
        value = None if error.child_node is None else error.child_node._value()
        raise ConfigError(str(error.full_key), value, f"a reference that can be resolved. {why}") from None
    assert isinstance(values, dict)
    return typing.cast(dict[str, Any], values)


def override(key: str, value: Any) -> str:
    """Return the Hydra override that sets `key` to `value`, with its type: the text "64" stays text.

    Text that Hydra reads as itself is left as it is, all other text is quoted.
    """
    if isinstance(value, str):
        return f"{key}={value if _PLAIN.fullmatch(value) and _is_text(value) else _quoted(value)}"
    if isinstance(value, list | tuple):
        return f"{key}=[{','.join(override('', item)[1:] for item in value)}]"
    if isinstance(value, Mapping):
        pairs = [f"{name}:{override('', item)[1:]}" for name, item in value.items()]
        return f"{key}={{{','.join(pairs)}}}"
    return f"{key}={'null' if value is None else str(value).lower()}"


_PLAIN = re.compile(r"[A-Za-z_/][\w/.-]*", re.ASCII)


def _is_text(word: str) -> bool:
    return isinstance(_parse(f"key={word}").value(), str)


def _quoted(text: str) -> str:
    """Quote text for Hydra, and interpolations within for OmegaConf: backslashes count only before what they escape."""
    for special in (r"\$\{", '"'):
        text = re.sub(rf"(\\*)({special})", r"\1\1\\\2", text)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", text) + '"'


def as_text(word: str) -> str:
    """Return the text that a value on the command line stands for: itself, or what its quotes enclose."""
    from hydra.errors import HydraException

    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        try:
            return str(_parse(f"key={word}").value())
        except HydraException:
            return word
    return word


def checked(overrides: Sequence[str]) -> "list[Override]":
    """Parse overrides. Raises `ConfigError` for invalid syntax and for an unknown choice of a group.

    Hydra itself ignores an unknown choice of an optional group.
    """
    from hydra.errors import HydraException

    require_overrides(overrides)
    parsed = []
    for text in overrides:
        try:
            parsed.append(_parse(text))
        except (HydraException, ValueError):  # the latter for numbers of thousands of digits
            raise ConfigError("override", text, _how_to_write(text)) from None
        if not re.search(r"\w", parsed[-1].key_or_group):  # the folder of the configs would be taken for a group
            raise ConfigError("override", text, _how_to_write(""))
        _check_choice(parsed[-1])
    return parsed


def require_overrides(overrides: Any) -> None:
    """Raise `ConfigError` for anything but a list of text."""
    if not isinstance(overrides, list | tuple) or not all(isinstance(text, str) for text in overrides):
        raise ConfigError("overrides", overrides, 'a list of overrides, as in ["optim.lr=1e-3"]')


def _require_single(overrides: "Sequence[Override]") -> None:
    """Raise `ConfigError` for an override with several values, such as text with a comma that is not quoted."""
    for several in overrides:
        if several.is_sweep_override():
            valid = f"one value; {_how_to_write(several.input_line or '')}"
            raise ConfigError(several.key_or_group, several.get_value_string(), valid)


def _how_to_write(text: str) -> str:
    """Say how to write an override that does not parse, in a shell."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[./@+~-]*\w[\w./@+~-]*", key):
        return "use key=value, as in optim.lr=1e-3 or model=v2_lite"
    return f"if the value is text, quote it: {shlex.quote(shortened(override(key, value)))}"


@lru_cache(maxsize=4096)
def _parse(text: str) -> "Override":
    """Parse one override, cached, since the arms of a study share most of theirs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)


def _check_choice(override: "Override") -> None:
    key, value = override.key_or_group, override.value()
    if key == "hydra":
        raise ConfigError(key, value, "only its keys can be set, as in hydra.run.dir=...")
    if _is_group(override) and not override.is_delete():
        if value not in (choices := options(key)):
            given = override.get_value_string() if override.is_sweep_override() else value
            raise ConfigError(key, given, f"choose one of {', '.join(choices)}")
    elif isinstance(value, str) and (choices := options(key)):
        raise ConfigError(key, value, f"groups are written with slashes, {key.replace('.', '/')}={'|'.join(choices)}")


def _composed(overrides: "Sequence[Override]", name: str) -> "DictConfig":
    """Compose with Hydra, caching each choice of groups, since the arms of a study mostly differ in values."""
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf

    groups = tuple(override.input_line for override in overrides if _is_group(override))
    values = [override for override in overrides if not _is_group(override)]
    if any(override.type != OverrideType.CHANGE or override.is_sweep_override() for override in values):
        groups, values = tuple(override.input_line for override in overrides), []
    composed: DictConfig = pickle.loads(_of_groups(name, groups, _files()))
    for override in values:
        OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
    return composed


def _is_group(override: "Override") -> bool:
    return (CONFIG_DIR / override.key_or_group).is_dir()


def _files() -> tuple[tuple[str, int], ...]:
    """Return the config files with their mtimes, so that an edited file is read again."""
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in CONFIG_DIR.rglob("*.yaml")))


@lru_cache(maxsize=64)
def _of_groups(name: str, overrides: tuple[str, ...], files: tuple[tuple[str, int], ...]) -> bytes:
    """Compose and pickle; unpickling gives a copy, faster than `deepcopy`. `files` is part of the cache key."""
    from hydra import compose as hydra_compose

    return pickle.dumps(hydra_compose(name, overrides=list(overrides)))


def without_shape(composed: dict[str, Any]) -> dict[str, Any]:
    """Drop `model.shape`, the sizes of a preset that its attention and FFN files interpolate."""
    model = composed.get("model")
    if isinstance(model, dict):
        model.pop("shape", None)
    return composed


def _explain(error: Exception, overrides: "Sequence[Override]", name: str) -> ConfigError:
    """Find the override that Hydra refused, and return an error that says what is valid."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    accepted: list[str] = []
    for override in sorted(overrides, key=_depth):
        text = override.input_line or ""
        try:
            hydra_compose(name, overrides=[*accepted, text])
        except (HydraException, ValueError):
            without = hydra_compose(name, overrides=accepted, return_hydra_config=True)
            if override.is_delete() and (choices := options(override.key_or_group)):
                raise ConfigError(override.key_or_group, None, f"choose one of {', '.join(choices)}") from None
            return _locate(override.key_or_group, override.value(), without, error)
        accepted.append(text)
    return ConfigError("config", " ".join(accepted), str(error).splitlines()[0])


def _depth(override: "Override") -> int:
    """Order overrides as Hydra applies them: a group before the groups within it, values last."""
    return override.key_or_group.count("/") if _is_group(override) else 99


def _locate(key: str, value: Any, composed: "DictConfig", error: Exception) -> ConfigError:
    """Return an error that names the missing part of a key, given the config composed without it."""
    from omegaconf import OmegaConf

    if "/" in key:
        choices = {str(group): choice for group, choice in composed.hydra.runtime.choices.items()}
        parent = key.rpartition("/")[0]
        if options(key) and parent in choices and key not in choices:
            return ConfigError(key, value, f"{parent}={choices[parent]} has no such choice")
        return ConfigError(key, value, one_of(key, [group for group in choices if not group.startswith("hydra")]))
    node: Any = composed
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if node is None:
            return ConfigError(key, value, _nothing_in(parts[:depth]))
        if not OmegaConf.is_dict(node):
            return ConfigError(key, value, f"{'.'.join(parts[:depth])} is {node} here and has no keys")
        if part not in node:
            known = [str(other) for other in node if other not in ("_target_", "hydra")]
            return ConfigError(key, value, one_of(part, known))
        node = node[part]
    if value in options(key):  # written with + or @
        return ConfigError(key, value, f"written as {key.replace('.', '/')}={value}")
    if OmegaConf.is_dict(node):
        known = [str(other) for other in node if other != "_target_"]
        for name, part in value.items() if isinstance(value, Mapping) else ():
            if name not in known:
                return ConfigError(f"{key}.{name}", part, one_of(str(name), known))
        return ConfigError(key, value, keys_of(key, known))
    if OmegaConf.is_list(node):
        return ConfigError(key, value, f"a list, as in {override(key, list(node))}")
    return ConfigError(key, value, str(error).splitlines()[0])


def _nothing_in(parts: Sequence[str]) -> str:
    """Explain that a key is null, and list the choices of its group or of the parent's group."""
    at = ".".join(parts)
    for length in (len(parts), len(parts) - 1):
        group = "/".join(parts[:length])
        if group and (choices := options(group)):
            return f"{at} is null here and has no keys; other choices of {group} are {', '.join(choices)}"
    return f"{at} is null here and has no keys"
