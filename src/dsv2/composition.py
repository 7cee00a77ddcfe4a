"""Hydra: YAML and overrides become plain values, and what it refuses becomes a `ConfigError`."""

import pickle
import typing
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dsv2.config import CONFIG_DIR, ConfigError, one_of

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def register_resolvers() -> None:
    """Give YAML and overrides `${times:KEY,FACTOR}` and `${plus:KEY,TERM}`: a value relative to another one.

    Studies say with them what they change whatever the size of the scale, as in half of `model.shape.expert_dim`.
    """
    from omegaconf import OmegaConf

    def number(key: str, root: Any) -> int | float:
        value = OmegaConf.select(root, key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(key, value, "a number, since a value is worked out from it")
        return value

    def times(key: str, factor: float, *, _root_: Any) -> int | float:
        value = number(key, _root_)
        product = value * factor
        if isinstance(value, float):
            return product
        if product != int(product):
            raise ConfigError(key, value, f"a multiple of {1 / factor:g}, since {factor:g} times it is asked for")
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
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    parsed = checked(overrides)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            composed = OmegaConf.to_container(_composed(parsed, name), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, parsed, name) from None
    assert isinstance(composed, dict)
    return without_shape(typing.cast(dict[str, Any], composed))


def checked(overrides: Sequence[str]) -> "list[Override]":
    """Parse overrides. Raises `ConfigError` for one that does not parse and for a choice that its group does not have.

    Hydra itself passes over an unknown choice of an optional group.
    """
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            parsed.append(_parse(text))
        except HydraException:
            raise ConfigError("override", text, "write key=value, as in optim.lr=1e-3 or model=v2_lite") from None
        _check_choice(parsed[-1])
    return parsed


@lru_cache(maxsize=4096)
def _parse(text: str) -> "Override":
    """Parse one override, each once: the arms of a study share most of theirs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)


def _check_choice(override: "Override") -> None:
    key, value = override.key_or_group, override.value()
    if _is_group(override) and not override.is_delete():
        if value not in (options := _options(key)):
            given = override.get_value_string() if override.is_sweep_override() else value
            raise ConfigError(key, given, f"choose one of {', '.join(options)}")
    elif isinstance(value, str) and (options := _options(key)):
        raise ConfigError(key, value, f"a choice is written with slashes, {key.replace('.', '/')}={'|'.join(options)}")


def _composed(overrides: "Sequence[Override]", name: str) -> "DictConfig":
    """What Hydra composes, with the files of a choice of groups read once: the arms of a study differ in values."""
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf

    groups = tuple(each.input_line for each in overrides if _is_group(each))
    values = [each for each in overrides if not _is_group(each)]
    if any(each.type != OverrideType.CHANGE or each.is_sweep_override() for each in values):
        groups, values = tuple(each.input_line for each in overrides), []
    composed: DictConfig = pickle.loads(_of_groups(name, groups, _files()))
    for each in values:
        OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
    return composed


def _is_group(override: "Override") -> bool:
    return (CONFIG_DIR / override.key_or_group).is_dir()


def _files() -> tuple[tuple[str, int], ...]:
    """What the folder of configs holds, so that an edited file is read again."""
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in CONFIG_DIR.rglob("*.yaml")))


@lru_cache(maxsize=64)
def _of_groups(name: str, overrides: tuple[str, ...], files: tuple[tuple[str, int], ...]) -> bytes:
    """Compose under what `files` says, and pickle it: whoever unpickles has a copy, faster than by `deepcopy`."""
    from hydra import compose as hydra_compose

    return pickle.dumps(hydra_compose(name, overrides=list(overrides)))


def without_shape(composed: dict[str, Any]) -> dict[str, Any]:
    """Drop `model.shape`: a preset's numbers for its attention and FFN files to interpolate, no part of the model."""
    model = composed.get("model")
    if isinstance(model, dict):
        model.pop("shape", None)
    return composed


def _explain(error: Exception, overrides: "Sequence[Override]", name: str) -> ConfigError:
    """Find the override that Hydra refused, and say what would have been valid there."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    accepted: list[str] = []
    for override in sorted(overrides, key=_depth):
        text = override.input_line or ""
        try:
            hydra_compose(name, overrides=[*accepted, text])
        except HydraException:
            without = hydra_compose(name, overrides=accepted, return_hydra_config=True)
            return _locate(override.key_or_group, override.value(), without, error)
        accepted.append(text)
    return ConfigError("config", " ".join(accepted), str(error).splitlines()[0])


def _depth(override: "Override") -> int:
    """Order overrides as Hydra applies them: a group before the groups within it, values last."""
    return override.key_or_group.count("/") if _is_group(override) else 99


def _options(key: str) -> list[str]:
    """Return what can be chosen for a group, written with dots or slashes; none where there is no such group."""
    return sorted(path.stem for path in (CONFIG_DIR / key.replace(".", "/")).glob("*.yaml"))


def _locate(key: str, value: Any, composed: "DictConfig", error: Exception) -> ConfigError:
    """Say which part of a key is not there, in the config composed without it."""
    from omegaconf import OmegaConf

    if "/" in key:
        choices = {str(group): choice for group, choice in composed.hydra.runtime.choices.items()}
        parent = key.rpartition("/")[0]
        if _options(key) and parent in choices and key not in choices:
            return ConfigError(key, value, f"not a choice that {parent}={choices[parent]} has")
        return ConfigError(key, value, one_of(key, [group for group in choices if not group.startswith("hydra")]))
    node: Any = composed
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if node is None:
            return ConfigError(key, value, _nothing_in(parts[:depth]))
        if not OmegaConf.is_dict(node):
            break
        if part not in node:
            known = [str(other) for other in node if other not in ("_target_", "hydra")]
            return ConfigError(key, value, one_of(part, known))
        node = node[part]
    return ConfigError(key, value, str(error).splitlines()[0])


def _nothing_in(parts: Sequence[str]) -> str:
    """Say that a key is null, and which group offers something to put there: its own or that of what it is in."""
    at = ".".join(parts)
    for length in (len(parts), len(parts) - 1):
        group = "/".join(parts[:length])
        if group and (options := _options(group)):
            return f"{at} is null here and has no keys; other choices of {group} are {', '.join(options)}"
    return f"{at} is null here and has no keys"
