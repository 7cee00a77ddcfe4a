"""What the importer does not take, by name, and that nothing half done is left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

import dsv2.interop.huggingface as huggingface
from dsv2.commands.huggingface import export_hf, import_hf
from dsv2.interop.hf_config import config_from_hf, config_to_hf, read_config
from dsv2.interop.huggingface import from_hf, to_hf
from dsv2.models.attention import GQA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import GShard, Hash, MoE, Switch
from dsv2.models.moe.dropping import Dropping
from dsv2.models.transformer import Transformer
from tests.references.twins import LIMITED, tokens, twin, yarn

CONFIG = twin(q_lora_rank=20, **LIMITED).config.to_dict()


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


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True is not valid: false"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2 is not valid: 1"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not valid: 'softmax'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not valid: 'silu'"),
        ({"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not valid: one of greedy, group_limited_greedy"),
        ({"topk_method": None}, "topk_method=None"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1 is not valid: unknown key"),
        ({"model_type": "deepseek_v3"}, "model_type='deepseek_v3' is not valid: 'deepseek_v2'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2 is not valid: num_attention_heads=4"),
        ({"hidden_size": "32"}, "hidden_size='32' is not valid: an integer"),
        ({"n_group": None}, "n_group=None is not valid: an integer"),
        ({"n_group": 3}, "n_group=3 is not valid: a divisor of num_experts=8"),
        ({"topk_group": 5}, "topk_group=5 is not valid: between 1 and num_devices=4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok=5 is not valid: between 1 and 4"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7 is not valid: even"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear' is not valid"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "factor=2.0 is not valid: unknown key"),
        ({"rope_parameters": yarn(truncate=False)}, "truncate=False is not valid"),
        ({"rope_parameters": yarn(factor=0.5)}, "factor=0.5 is not valid: at least 1"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor=None is not valid: a number"),
        ({"rope_parameters": yarn(factor=1.0, attention_factor=2.0)}, "attention_factor=2.0 is not valid"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope_type='dynamic'"),
        ({"rope_scaling": yarn(factor=2.0), "rope_parameters": yarn()}, "rope_scaling="),
    ],
)
def test_config_refusals_name_key_and_value(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"is not valid") as refusal:
        config_from_hf(CONFIG | changed)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("key", ["vocab_size", "kv_lora_rank", "n_routed_experts", "num_experts_per_tok", "v_head_dim"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=None is not valid: an integer is required, and the key is missing"):
        config_from_hf({name: value for name, value in CONFIG.items() if name != key})


def test_keys_that_compute_nothing_are_tolerated() -> None:
    extra = {"max_length": 20, "id2label": {"0": "x"}, "_name_or_path": "x", "some_future_key": None}
    assert config_from_hf(CONFIG | extra) == config_from_hf(CONFIG)


def test_a_config_without_experts_is_dense() -> None:
    assert config_from_hf(CONFIG | {"n_routed_experts": None}).ffn == SwiGLU.Config(width=CONFIG["intermediate_size"])


def test_llama_is_read_for_accounting_only(saved: Path, tmp_path: Path) -> None:
    llama = LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    config = config_from_hf(llama.to_dict())
    assert config.attention == GQA.Config(num_heads=4, num_kv_heads=2, head_dim=16)
    assert config.ffn == SwiGLU.Config(width=96)
    llama.save_pretrained(tmp_path)
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == config
    with pytest.raises(ValueError, match="model_type='llama' is not valid"):
        from_hf(tmp_path)
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
    with pytest.raises(ValueError, match="rope_type='llama3' is not valid"):
        config_from_hf(llama.to_dict() | {"rope_parameters": scaled})


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
    with pytest.raises(ValueError, match=r"lm_head\.weight: extra, tie_word_embeddings is true"):
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
    refused(where | {key: "model-9.safetensors"}, r"names the shard 'model-9\.safetensors' for model\.norm\.weight")
    refused(where | {key: "../model-9.safetensors"}, r"names the shard '\.\./model-9")
    refused(where | {key: other}, r"model\.norm\.weight: (the index names it there|not there in the index)")
    refused({name: file for name, file in where.items() if name != key}, r"model\.norm\.weight: not there in the index")
    refused({}, "no weight_map")


# ---- out, and the commands -------------------------------------------------------------------------------------------


def mla() -> Transformer.Config:
    return config_from_hf(CONFIG)


def test_what_deepseek_v2_cannot_hold_is_refused(tmp_path: Path) -> None:
    fields = {name: value for name, value in vars(mla()).items() if name != "attention"}
    with pytest.raises(ValueError, match=r"^attention=.*MLA"):
        config_to_hf(Transformer.Config(**fields, attention=GQA.Config(num_heads=4, num_kv_heads=4, head_dim=8)))
    normed = GQA.Config(num_heads=4, num_kv_heads=4, head_dim=8, key_norm=True)
    with pytest.raises(ValueError, match=r"^attention=.*key_norm=True.*MLA"):
        config_to_hf(Transformer.Config(**fields, attention=normed))
    for kind in (GShard, Switch, Hash):
        baseline = Transformer.Config(**vars(mla()) | {"ffn": kind.Config(num_experts=4, expert_dim=8)})
        with pytest.raises(ValueError, match=rf"^ffn={kind.__name__}\.Config.*DeepSeekMoE or a dense SwiGLU"):
            config_to_hf(baseline)
        with pytest.raises(ValueError, match=rf"^ffn={kind.__name__}\.Config.*DeepSeekMoE or a dense SwiGLU"):
            to_hf(baseline.build(), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"^dense.width=40 is not valid: 48"):
        config_to_hf(Transformer.Config(**vars(mla()) | {"ffn": SwiGLU.Config(width=48)}))


def test_token_dropping_is_left_out() -> None:
    ffn = mla().ffn
    assert isinstance(ffn, MoE.Config)
    dropping = Transformer.Config(**vars(mla()) | {"ffn": MoE.Config(**vars(ffn) | {"dropping": Dropping.Config()})})
    assert config_to_hf(dropping) == config_to_hf(mla())


def test_nothing_is_overwritten_and_nothing_half_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, taken = from_hf(saved), tmp_path / "taken"
    taken.mkdir()
    to_hf(model, taken)  # an empty directory is free
    before = {file.name: file.read_bytes() for file in taken.iterdir()}
    for call in (lambda: to_hf(model, taken), lambda: import_hf(saved, taken), lambda: export_hf(saved, taken)):
        with pytest.raises(ValueError, match="taken: exists already"):
            call()
    assert before == {file.name: file.read_bytes() for file in taken.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        to_hf(model, tmp_path / "full")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_commands_make_a_run_and_export_it_again(saved: Path, tmp_path: Path) -> None:
    import_hf(saved, tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.yaml", "model.safetensors"]
    export_hf(tmp_path / "run", tmp_path / "out")
    theirs, ours = load_file(saved / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert torch.equal(from_hf(tmp_path / "out")(tokens()).logits, from_hf(saved)(tokens()).logits)
    with pytest.raises(ValueError, match=r"not a run directory, it has no config\.yaml"):
        export_hf(saved, tmp_path / "other")
