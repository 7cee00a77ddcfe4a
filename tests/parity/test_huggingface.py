"""Our model against transformers' DeepseekV2ForCausalLM: same numbers, and the same files in both directions."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, DeepseekV2ForCausalLM

from dsv2.interop.hf_config import config_from_hf, config_to_hf
from dsv2.interop.huggingface import from_hf, to_hf
from dsv2.interop.names import Row, table
from dsv2.models.rope import NTK, Interpolation, Rope, Yarn
from dsv2.models.transformer import Transformer
from tests.references.twins import LIMITED, SHAPE, relative, tokens, twin, yarn

# Float32 on both sides, products summed in another order: 2^-24 = 6e-8 a rounding, sums of 40 terms, six to nine
# matrices deep, twice where a sharp softmax passes it on. Measured over the grid: 3.0e-6 at the worst.
LOGITS = 1e-5
# Gradients pass every matrix twice. Measured over the grid: 5.4e-6 at the worst.
GRADIENTS = 3e-5

YARNS = {
    "no yarn": None,
    "equal mscale": yarn(mscale=0.707, mscale_all_dim=0.707),
    "unequal mscale": yarn(mscale=1.0, mscale_all_dim=0.5),
    "mscale alone": yarn(mscale=0.707),
    "mscale_all_dim alone": yarn(mscale_all_dim=0.707),
    "neither mscale": yarn(),
    "mscale 0": yarn(mscale=0, mscale_all_dim=0.707),
    "attention_factor": yarn(attention_factor=1.5, mscale_all_dim=0.3, beta_fast=16.0, beta_slow=2.0),
    "attention_factor 1": yarn(attention_factor=1.0),
    "factor 1": yarn(factor=1.0, mscale=0.5, mscale_all_dim=0.7),
    "interpolation": {"rope_type": "linear", "factor": 4.0},
}


def imported(hf: DeepseekV2ForCausalLM) -> tuple[Transformer, dict[str, tuple[Row, Tensor]]]:
    """Our model with the weights of `hf` in memory, and the table's rows beside them."""
    config = config_from_hf(hf.config.to_dict())
    model, theirs = config.build(), dict(hf.named_parameters())
    rows = {row.key: (row, theirs[row.key]) for row in table(config, fused=True)}
    assert rows.keys() == theirs.keys()
    for row, weight in rows.values():
        row.scatter(weight, dict(model.named_parameters()))
    return model, rows


def agree(hf: DeepseekV2ForCausalLM) -> None:
    """Logits, and gradients of every parameter mapped from ours to theirs and from theirs to ours."""
    model, rows = imported(hf)
    weighting = torch.randn(2, 24, SHAPE["vocab_size"], generator=torch.Generator().manual_seed(1))
    ours, theirs = model(tokens()).logits, hf(tokens()).logits
    assert relative(ours, theirs) <= LOGITS
    (ours * weighting).sum().backward()
    (theirs * weighting).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    mapped = {name: torch.full_like(weight, torch.nan) for name, weight in model.named_parameters()}
    assert gradients.keys() == mapped.keys()
    for row, weight in rows.values():
        assert weight.grad is not None
        assert relative(row.gather(gradients), weight.grad) <= GRADIENTS, row.key
        row.scatter(weight.grad, mapped)
    for name, gradient in mapped.items():  # nothing is left NaN: the rows fill every parameter of ours
        assert relative(gradients[name], gradient) <= GRADIENTS, name


# ---- numbers ---------------------------------------------------------------------------------------------------------

GRID = list(itertools.product(YARNS, (None, 20), ({}, LIMITED), (1.0, 16.0), (0, 1, 2)))


@pytest.mark.parametrize("name", YARNS)
def test_logits_and_gradients_agree(name: str) -> None:
    for index, (_, q_lora_rank, routing, scaling, dense) in enumerate(case for case in GRID if case[0] == name):
        base, eps = ((1e4, 1e-6), (5e4, 1e-6), (1e4, 1e-5), (5e4, 1e-5))[index % 4]
        parameters = (YARNS[name] or {"rope_type": "default"}) | {"rope_theta": base}
        hf = twin(
            q_lora_rank=q_lora_rank,
            routed_scaling_factor=scaling,
            first_k_dense_replace=dense,
            rms_norm_eps=eps,
            rope_parameters=parameters,
            tie_word_embeddings=index % 5 == 0,
            **routing,
        )
        agree(hf.train() if index % 3 else hf.eval())


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_hidden_layers": 3, "v_head_dim": 20},
        {"num_hidden_layers": 1, "first_k_dense_replace": 0, "v_head_dim": 8, "num_experts_per_tok": 1},
        {"n_shared_experts": 0},
        {"num_attention_heads": 1, "qk_nope_head_dim": 6, "qk_rope_head_dim": 2, "v_head_dim": 3},
        {"moe_intermediate_size": 7, "num_experts_per_tok": 8},
        {"num_experts_per_tok": 2},
        LIMITED | {"topk_group": 4},
        LIMITED | {"n_group": 8, "topk_group": 3},
    ],
)
def test_other_shapes_agree(overrides: dict[str, Any]) -> None:
    agree(twin(**overrides))


def test_training_and_evaluation_agree() -> None:
    hf = twin(**LIMITED)
    model, _ = imported(hf)
    for mode in (True, False):
        assert relative(model.train(mode)(tokens()).logits, hf.train(mode)(tokens()).logits) <= LOGITS


@pytest.mark.parametrize(
    "wrong",
    [
        {"routed_scaling_factor": 2.0},
        {"topk_group": 3},
        {"topk_method": "greedy"},
        {"first_k_dense_replace": 1, "rms_norm_eps": 1e-2},
        {"rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.6)},
        {"rope_parameters": yarn(mscale=0.6, mscale_all_dim=0.707)},
        {"rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707, beta_fast=4.0)},
        {"rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707, factor=32.0)},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ],
)
def test_the_grid_notices_a_wrong_value(wrong: dict[str, Any]) -> None:
    hf = twin(rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707), routed_scaling_factor=16.0, **LIMITED)
    model, _ = imported(hf)
    other = config_from_hf(hf.config.to_dict() | wrong).build()
    other.load_state_dict(model.state_dict())
    assert relative(other(tokens()).logits, hf(tokens()).logits) > 100 * LOGITS


# ---- files -----------------------------------------------------------------------------------------------------------

FILES = {
    "lite": {},
    "compressed": {"q_lora_rank": 20, "routed_scaling_factor": 16.0, **LIMITED},
    "tied": {"tie_word_embeddings": True, "rope_parameters": yarn(mscale_all_dim=0.707)},
    "no shared": {"n_shared_experts": 0, "first_k_dense_replace": 0},
    "dense": {"first_k_dense_replace": 2},
}


def files(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype
        assert torch.equal(actual[key], tensor), key


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_goes_in_and_out_unchanged(name: str, shard: str | None, tmp_path: Path) -> None:
    hf = twin(**FILES[name])
    hf.save_pretrained(tmp_path / "theirs", **({"max_shard_size": shard} if shard else {}))
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3 * bool(shard)
    model = from_hf(tmp_path / "theirs")
    assert relative(model(tokens()).logits, hf(tokens()).logits) <= LOGITS

    to_hf(model, tmp_path / "ours", max_shard_bytes=20_000 if shard else 10**9)
    same(files(tmp_path / "ours"), files(tmp_path / "theirs"))
    back, info = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    same(back.state_dict(), hf.state_dict())
    assert relative(back(tokens()).logits, hf(tokens()).logits) <= LOGITS

    again = from_hf(tmp_path / "ours")
    same(again.state_dict(), model.state_dict())
    assert again.config == model.config


def test_shards_keep_their_size_and_are_indexed(tmp_path: Path) -> None:
    to_hf(imported(twin())[0], tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert shards == sorted(set(index["weight_map"].values()))
    for name in shards:
        held = load_file(tmp_path / "out" / name)
        assert all(index["weight_map"][key] == name for key in held)
        assert sum(tensor.nbytes for tensor in held.values()) <= 20_000
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in files(tmp_path / "out").values())


def test_experts_in_memory_form_are_read(tmp_path: Path) -> None:
    hf = twin()
    hf.config.save_pretrained(tmp_path)
    save_file({name: weight.detach() for name, weight in hf.named_parameters()}, tmp_path / "model.safetensors")
    assert relative(from_hf(tmp_path)(tokens()).logits, hf(tokens()).logits) <= LOGITS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_of_the_file_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    twin().to(dtype).save_pretrained(tmp_path / "theirs")
    model = from_hf(tmp_path / "theirs")
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    to_hf(model, tmp_path / "ours")
    same(files(tmp_path / "ours"), files(tmp_path / "theirs"))
    assert DeepseekV2ForCausalLM.from_pretrained(tmp_path / "ours").dtype == dtype


def test_of_several_dtypes_the_one_that_holds_all(tmp_path: Path) -> None:
    twin().bfloat16().save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    held["model.layers.1.mlp.gate.weight"] = held["model.layers.1.mlp.gate.weight"].float()
    save_file(held, tmp_path / "model.safetensors")
    assert {weight.dtype for weight in from_hf(tmp_path).parameters()} == {torch.float32}


# ---- config ----------------------------------------------------------------------------------------------------------


def test_a_config_of_2024_reads_as_transformers_reads_it(tmp_path: Path) -> None:
    hf = twin(rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707), **LIMITED)
    hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    for key in ("head_dim", "qk_head_dim", "mlp_bias", "dtype", "output_router_logits"):
        del config[key]
    config |= {
        "rope_theta": int(rope.pop("rope_theta")),
        "rope_scaling": {"type": rope.pop("rope_type")} | {"beta_fast": 32, "beta_slow": 1} | rope | {"factor": 40},
        "torch_dtype": "float32",
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "seq_aux": True,
        "aux_loss_alpha": 0.001,
        "ep_size": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config_from_hf(config) == config_from_hf(hf.config.to_dict())
    assert relative(from_hf(tmp_path)(tokens()).logits, hf(tokens()).logits) <= LOGITS


@pytest.mark.parametrize("mscale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mscale_all_dim", [0.0, 0.5, 1.0])
def test_every_yarn_of_ours_survives_the_way_out(mscale: float, mscale_all_dim: float, tmp_path: Path) -> None:
    chosen = Yarn.Config(original_length=512, mscale=mscale, mscale_all_dim=mscale_all_dim)
    model = dataclasses.replace(config_from_hf(twin().config.to_dict()), rope=Rope.Config(yarn=chosen)).build()
    to_hf(model, tmp_path / "out")
    assert from_hf(tmp_path / "out").config == model.config
    hf = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert relative(model(tokens()).logits, hf(tokens()).logits) <= LOGITS


@pytest.mark.parametrize("kind", [Interpolation, NTK])
def test_other_extensions_compute_the_same_there(kind: type[Interpolation | NTK], tmp_path: Path) -> None:
    """NTK-aware scaling leaves as the base that it amounts to."""
    rope = Rope.Config(base=1e4, extension=kind.Config(factor=4.0, original_length=128))
    model = dataclasses.replace(config_from_hf(twin().config.to_dict()), rope=rope).build()
    to_hf(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 512
    again = from_hf(tmp_path / "out")
    assert (again.config == model.config) == (kind is Interpolation)
    hf = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    for other in (again, hf):
        assert relative(other(tokens()).logits, model(tokens()).logits) <= LOGITS


@pytest.mark.parametrize("name", FILES)
def test_a_config_survives_transformers(name: str, tmp_path: Path) -> None:
    config = config_from_hf(twin(**FILES[name]).config.to_dict())
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    again = AutoConfig.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    again.save_pretrained(tmp_path)
    assert config_from_hf(json.loads((tmp_path / "config.json").read_text())) == config
