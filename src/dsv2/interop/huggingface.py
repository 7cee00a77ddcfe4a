"""Import and export of Hugging Face DeepseekV2 checkpoints: `config.json` and safetensors, whole or sharded.

`names` maps the tensors, `hf_config` the config keys. Tensors are read and written one at a time: importing needs
memory for the model and one tensor, exporting for the model and one shard.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.interop.hf_config import config_from_hf, config_to_hf, read_config, read_json
from dsv2.interop.hf_keys import refuse_invalid_kept
from dsv2.interop.names import Row, table
from dsv2.models.transformer import Transformer, require_model
from dsv2.storage.checkpoints import require_no_pickles
from dsv2.storage.files import new_directory
from dsv2.storage.paths import as_path, home_of, require_own_files

__all__ = ["config_from_hf", "config_to_hf", "from_hf", "read_config", "to_hf"]

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Stored(NamedTuple):
    """File, shape and dtype of a stored tensor, from the file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


# ---- import ----------------------------------------------------------------------------------------------------------


def from_hf(path: str | Path) -> Transformer:
    """Load the model of a DeepseekV2 checkpoint directory, on the default device.

    Parameters have the dtype of the checkpoint; if it has several, the narrowest that holds all exactly. All keys are
    checked before memory is allocated: raises ValueError for the first unknown, extra or missing key or wrong shape.
    """
    path = as_path("path", path)
    require_no_pickles()
    require_own_files(path, home_of(path))
    hf_config = read_json(path / "config.json")
    if hf_config.get("model_type") != "deepseek_v2":
        raise ConfigError("model_type", hf_config.get("model_type"), "'deepseek_v2' for weights")
    config, stored = config_from_hf(hf_config), _headers(path)
    with torch.device("meta"):
        model = config.build()
    fused = any(key.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")) for key in stored)
    rows = {row.key: row for row in table(config, fused=fused)}
    _check(path, config, rows, stored, dict(model.named_parameters()))
    model.to(_dtype(stored)).to_empty(device=torch.get_default_device())
    weights = dict(model.named_parameters())
    for file in sorted({entry.file for entry in stored.values()}):
        with _open(file) as reader:
            for key in reader.keys():  # noqa: SIM118, a reader is not a mapping
                rows[key].scatter(reader.get_tensor(key), weights)
    return model


def _headers(path: Path) -> dict[str, Stored]:
    """List every tensor of the checkpoint. Raises ValueError if files are missing or contradict their index."""
    if (path / WHOLE).is_file():
        return _header(path / WHOLE)
    if not (path / INDEX).is_file():
        raise ValueError(f"{path}: neither {WHOLE} nor {INDEX}")
    where = read_json(path / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{path / INDEX}: no weight_map")
    shards: dict[str, set[str]] = {}
    for key, name in where.items():
        shards.setdefault(str(name), set()).add(key)
    for name, keys in sorted(shards.items()):
        if Path(name).name != name or not (path / name).is_file():
            raise ValueError(f"{path / INDEX}: the shard {name!r} of {min(keys)} is missing")
    stored: dict[str, Stored] = {}
    for name, keys in sorted(shards.items()):
        held = _header(path / name)
        for key in sorted(keys ^ held.keys()):
            problem = "listed in the index, but not in the shard" if key in keys else "not listed in the index"
            raise ValueError(f"{path / name}: {key}: {problem}")
        stored |= held
    return stored


def _header(file: Path) -> dict[str, Stored]:
    with _open(file) as reader:
        slices = {key: reader.get_slice(key) for key in reader.keys()}  # noqa: SIM118
        return {key: Stored(file, tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a complete safetensors file ({error})") from None


def _dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the narrowest dtype that holds every tensor exactly."""
    dtype: torch.dtype | None = None
    for key, entry in stored.items():
        if entry.dtype not in DTYPES:
            raise ValueError(f"{entry.file}: {key}: dtype {entry.dtype}, expected one of {', '.join(DTYPES)}")
        needed = DTYPES[entry.dtype]
        dtype = needed if dtype is None else torch.promote_types(dtype, needed)
    assert dtype is not None
    return dtype


def _check(
    path: Path, config: Transformer.Config, rows: Mapping[str, Row], stored: Mapping[str, Stored], weights: Any
) -> None:
    """Raise ValueError, naming the first wrong key, unless `stored` matches `rows` exactly."""
    for key in sorted(stored.keys() - rows.keys()):
        raise ValueError(f"{path}: {key}: {_why_extra(key, config, stored)}")
    for key, row in rows.items():
        if key not in stored:
            if row.parts:
                raise ValueError(f"{path}: {key}: missing")
            continue
        expected = row.shape(weights)
        if stored[key].shape != expected:
            raise ValueError(f"{path}: {key}: shape {list(stored[key].shape)}, expected {list(expected)}")


def _why_extra(key: str, config: Transformer.Config, stored: Iterable[str]) -> str:
    """Explain a key that this model does not have."""
    match = re.match(r"(model\.layers\.(\d+)\.)(?:mlp\.experts\.(\d+)\.)?", key)
    if match is None:
        tied = key == "lm_head.weight"
        return "extra, since tie_word_embeddings is true" if tied else "unknown, not a tensor of a deepseek_v2 model"
    layer, expert = int(match[2]), match[3]
    if layer >= config.num_layers:
        return f"extra, the last layer is {config.num_layers - 1}"
    direct, compressed = f"{match[1]}self_attn.q_proj.weight", f"{match[1]}self_attn.q_a_proj.weight"
    if ".self_attn.q_" in key and direct in stored and compressed in stored:
        return f"extra, {direct} and {compressed} exclude each other"
    if expert is not None and (config.moe is None or layer not in config.moe_layers):
        return f"extra, layer {layer} is dense"
    if expert is not None and config.moe is not None and int(expert) >= config.moe.num_experts:
        return f"extra, the last expert is {config.moe.num_experts - 1}"
    return "unknown or extra, the model of this config.json has no such tensor"


# ---- export ----------------------------------------------------------------------------------------------------------


def to_hf(
    model: Transformer,
    path: str | Path,
    *,
    max_shard_bytes: int = 5_000_000_000,
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write `model` as a checkpoint that transformers loads, in its own dtype, sharded above `max_shard_bytes`.

    `settings` are keys of config.json that the model does not determine, such as the ids of special tokens; `files`
    are further files, such as those of a tokenizer. The directory is written atomically. Raises ValueError if `path`
    exists or the model cannot be represented.
    """
    path = as_path("path", path)
    require_model(model)
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes={max_shard_bytes}: must be positive")
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    dtype = str(model.embedding.dtype).removeprefix("torch.")
    config = config_to_hf(model.config) | {"dtype": dtype} | dict(settings or {})
    refuse_invalid_kept(config)
    shards = _plan(table(model.config), weights, max_shard_bytes)
    with new_directory(path) as folder:
        _write_json(folder / "config.json", config)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        where: dict[str, str] = {}
        for index, rows in enumerate(shards, start=1):
            name = WHOLE if len(shards) == 1 else f"model-{index:05d}-of-{len(shards):05d}.safetensors"
            tensors = {row.key: row.gather(weights).cpu() for row in rows}
            save_file(tensors, folder / name, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, name)
        if len(shards) > 1:
            total = sum(weight.numel() * weight.element_size() for weight in weights.values())
            _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _plan(rows: Iterable[Row], weights: Mapping[str, Tensor], most: int) -> list[list[Row]]:
    """Group rows into shards of at most `most` bytes; a larger tensor has a shard of its own."""
    shards: list[list[Row]] = [[]]
    filled, width = 0, next(iter(weights.values())).element_size()
    for row in rows:
        size = math.prod(row.shape(weights)) * width
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(row)
        filled += size
    return shards


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
