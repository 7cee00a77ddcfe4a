"""Hydra: YAML and overrides become plain values, and what it refuses becomes a `ConfigError`."""

import copy
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

    Raises `ConfigError` for an unknown key, an unknown option of a group or an override that does not parse.
    """
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    parser, parsed = OverridesParser.create(), []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for text in overrides:
            try:
                parsed.append(parser.parse_override(text))
            except HydraException:
                raise ConfigError("override", text, "write key=value, as in optim.lr=1e-3 or model=v2_lite") from None
        try:
            composed = OmegaConf.to_container(_composed(parsed, name), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, overrides, name) from None
    assert isinstance(composed, dict)
    return without_shape(typing.cast(dict[str, Any], composed))


def _composed(overrides: "Sequence[Override]", name: str) -> "DictConfig":
    """What Hydra composes, with the files of a choice of groups read once: the arms of a study differ in values."""
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf

    groups = tuple(each.input_line for each in overrides if _is_group(each))
    values = [each for each in overrides if not _is_group(each)]
    if any(each.type != OverrideType.CHANGE or each.is_sweep_override() for each in values):
        return _of_groups(name, tuple(each.input_line for each in overrides), _files())
    composed = copy.deepcopy(_of_groups(name, groups, _files()))
    for each in values:
        OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
    return composed


def _is_group(override: "Override") -> bool:
    return (CONFIG_DIR / override.key_or_group).is_dir()


def _files() -> tuple[tuple[str, int], ...]:
    """What the folder of configs holds, so that an edited file is read again."""
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in CONFIG_DIR.rglob("*.yaml")))


@lru_cache(maxsize=64)
def _of_groups(name: str, overrides: tuple[str, ...], files: tuple[tuple[str, int], ...]) -> "DictConfig":
    """Composed under what `files` says, which must not be changed by whoever gets it."""
    from hydra import compose as hydra_compose

    return hydra_compose(name, overrides=list(overrides))


def without_shape(composed: dict[str, Any]) -> dict[str, Any]:
    """Drop `model.shape`: a preset's numbers for its attention and FFN files to interpolate, no part of the model."""
    model = composed.get("model")
    if isinstance(model, dict):
        model.pop("shape", None)
    return composed


def _explain(error: Exception, overrides: Sequence[str], name: str) -> ConfigError:
    """Find the override that Hydra refused, and say what would have been valid there."""
    from hydra import compose as hydra_compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    accepted: list[str] = []
    for text in overrides:
        override = parser.parse_override(text)
        key, value = override.key_or_group, override.value()
        group = CONFIG_DIR / key.replace(".", "/")
        options = sorted(path.stem for path in group.glob("*.yaml"))
        if options and isinstance(value, str) and value not in options:
            return ConfigError(key, value, f"choose one of {', '.join(options)}")
        try:
            hydra_compose(name, overrides=[*accepted, text])
        except HydraException:
            return _locate(key, value, hydra_compose(name, overrides=accepted), error)
        accepted.append(text)
    return ConfigError("config", " ".join(overrides), str(error).splitlines()[0])


def _locate(key: str, value: Any, composed: Any, error: Exception) -> ConfigError:
    """Say at which part of a dotted key the composed config has nothing of that name."""
    from omegaconf import OmegaConf

    node = composed
    for part in key.split("."):
        if not OmegaConf.is_dict(node):
            break
        if part not in node:
            return ConfigError(key, value, one_of(part, [str(other) for other in node if other != "_target_"]))
        node = node[part]
    return ConfigError(key, value, str(error).splitlines()[0])
