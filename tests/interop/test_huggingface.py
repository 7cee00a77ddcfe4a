"""Checkpoints in and out: what is refused, by name, and that nothing half done is left behind."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dsv2.interop.huggingface as huggingface
from dsv2.interop.hf_config import config_from_hf
from dsv2.interop.huggingface import from_hf, to_hf
from dsv2.models.moe import GShard, Hash, Switch
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.twins import LIMITED, twin

CONFIG = config_from_hf(twin(q_lora_rank=20, **LIMITED).config.to_dict())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "whole"
    twin().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "sharded"
    twin().save_pretrained(folder, max_shard_size="20KB")
    return folder


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# ---- weights ---------------------------------------------------------------------------------------------------------

LAYER = "model.layers.1."
EXPERT = LAYER + "mlp.experts."


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda held: held.update({new: held.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("model.norm.weight"), "model.norm.weight: missing"),
        (lambda held: held.pop(EXPERT + "7.up_proj.weight"), EXPERT + "7.up_proj.weight: missing"),
        (rename("model.norm.weight", "model.norm.bias"), "model.norm.bias: unknown"),
        (lambda held: held.update({"score.weight": torch.zeros(2)}), "score.weight: unknown"),
        (
            lambda held: held.update({LAYER + "mlp.gate.e_score_correction_bias": torch.zeros(8)}),
            LAYER + "mlp.gate.e_score_correction_bias: unknown or extra",
        ),
        (
            lambda held: held.update({EXPERT + "8.up_proj.weight": held[EXPERT + "7.up_proj.weight"].clone()}),
            EXPERT + "8.up_proj.weight: extra, the last expert is 7",
        ),
        (
            lambda held: held.update({"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(12, 32)}),
            "model.layers.0.mlp.experts.0.up_proj.weight: extra, layer 0 is dense",
        ),
        (
            lambda held: held.update({"model.layers.2.input_layernorm.weight": torch.zeros(32)}),
            "model.layers.2.input_layernorm.weight: extra, the last layer is 1",
        ),
        (
            lambda held: held.update({LAYER + "self_attn.q_a_proj.weight": torch.zeros(20, 32)}),
            f"{LAYER}self_attn.q_a_proj.weight: extra, {LAYER}self_attn.q_proj.weight and "
            f"{LAYER}self_attn.q_a_proj.weight exclude each other",
        ),
        (
            lambda held: held.update({"model.norm.weight": torch.zeros(31)}),
            "model.norm.weight: shape [31], expected [32]",
        ),
        (
            lambda held: held.update({EXPERT + "3.down_proj.weight": torch.zeros(12, 32)}),
            EXPERT + "3.down_proj.weight: shape [12, 32], expected [32, 12]",
        ),
        (lambda held: held.update({EXPERT + "down_proj": torch.zeros(8, 32, 12)}), EXPERT + "0.down_proj.weight"),
        (
            lambda held: held.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}),
            "model.norm.weight: dtype I8, expected one of F64, F32, BF16, F16",
        ),
    ],
)
def test_weight_refusals_name_the_key(change: Callable[..., Any], message: str, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "bad")
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"bad") as refusal:
        from_hf(folder)
    assert f": {message}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_query_projections_exclude_each_other_where_compression_is_configured(tmp_path: Path) -> None:
    twin(q_lora_rank=20).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    held[LAYER + "self_attn.q_proj.weight"] = torch.zeros(64, 32)
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_proj\.weight and .*q_a_proj\.weight exclude each other"):
        from_hf(tmp_path)


def test_an_output_head_beside_tied_embeddings_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "bad")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lm_head\.weight: extra, since tie_word_embeddings is true"):
        from_hf(folder)


def test_files_that_are_missing_or_broken_are_named(saved: Path, sharded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/config\.json: No such file"):
        from_hf(tmp_path / "nowhere")
    folder = copied(saved, tmp_path / "broken")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file"):
        from_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        from_hf(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        from_hf(folder)


def test_an_index_must_match_its_shards(sharded: Path, tmp_path: Path) -> None:
    folder = copied(sharded, tmp_path / "shards")
    index = json.loads((folder / huggingface.INDEX).read_text())
    key = "model.norm.weight"

    def refused(where: dict[str, str], message: str) -> None:
        (folder / huggingface.INDEX).write_text(json.dumps({"weight_map": where}))
        with pytest.raises(ValueError, match=message):
            from_hf(folder)

    where = index["weight_map"]
    other = next(name for name in where.values() if name != where[key])
    refused(where | {key: "model-9.safetensors"}, r"the shard 'model-9\.safetensors' of model\.norm\.weight is missing")
    refused(where | {key: "../model-9.safetensors"}, r"the shard '\.\./model-9")
    refused(
        where | {key: other},
        r"model\.norm\.weight: (listed in the index, but not in the shard|not listed in the index)",
    )
    refused(
        {name: file for name, file in where.items() if name != key}, r"model\.norm\.weight: not listed in the index"
    )
    refused({}, "no weight_map")


# ---- out -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Compressed queries, device limit, shared experts, one dense layer; no two weights alike."""
    return references.randomise(CONFIG.build(), seed=1)


@pytest.mark.parametrize("max_shard_bytes", [1, 20_000, 10**9])
def test_what_goes_out_comes_in_again(model: Transformer, tmp_path: Path, max_shard_bytes: int) -> None:
    """Bit for bit, in shards of any size, down to a tensor each."""
    to_hf(model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    shards = list((tmp_path / "out").glob("*.safetensors"))
    again = from_hf(tmp_path / "out")
    assert again.config == model.config
    weights = dict(again.named_parameters())
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())
    for shard in shards:
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= max_shard_bytes
    assert (len(shards) == 1) == (max_shard_bytes == 10**9)
    assert (tmp_path / "out" / huggingface.INDEX).exists() == (len(shards) > 1)


def test_a_shard_without_bytes_is_refused(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_bytes=0: must be positive"):
        to_hf(model, tmp_path / "out", max_shard_bytes=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [GShard, Switch, Hash])
def test_other_experts_than_deepseeks_are_not_written(kind: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, ffn=kind.Config(num_experts=4, expert_dim=8))
    with pytest.raises(ValueError, match=rf"^ffn={kind.__name__}\.Config.*DeepSeekMoE or a dense SwiGLU"):
        to_hf(config.build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_half_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, taken = from_hf(saved), tmp_path / "taken"
    taken.mkdir()
    to_hf(model, taken)  # an empty directory is free
    before = {file.name: file.read_bytes() for file in taken.iterdir()}
    with pytest.raises(ValueError, match="taken: already exists"):
        to_hf(model, taken)
    assert before == {file.name: file.read_bytes() for file in taken.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        to_hf(model, tmp_path / "full")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
