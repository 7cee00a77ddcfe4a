"""What training keeps, against what autograd says that it keeps."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import dsv2
from dsv2.accounting.account import account
from dsv2.accounting.memory import training_memory
from dsv2.config import ConfigError
from dsv2.inference.precision import OPS
from dsv2.kernels.cross_entropy import mean_nats

SMALL = ["model=tiny", "model.num_layers=2", "model.vocab_size=2048"]
TOLERANCE = 0.005  # the device limit's masks are left out, 0.2% here; everything else is exact to 0.03%


class Holder:
    """Lives as long as autograd holds on to the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(overrides: list[str], precision: str, batch: int, length: int, recompute_layers: int = 0) -> int:
    """Bytes of the distinct storages, weights aside, that wait for backward once the loss is there."""
    model = dsv2.load(overrides).model.build(ops=OPS[precision]).train()
    model.recompute_layers = recompute_layers
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Holder:
        holder = Holder(tensor)
        holders.add(holder)
        return holder

    tokens = torch.randint(0, 100, (batch, length))
    with saved_tensors_hooks(pack, lambda holder: holder.tensor):
        output = model(tokens)
        loss = mean_nats(output.logits, tokens)
    storages = [holder.tensor.untyped_storage() for holder in list(holders)]
    dense = model.config.num_dense_layers
    for routing in output.routings[: max(recompute_layers - dense, 0)]:  # which the balance losses read
        storages += [part.untyped_storage() for part in (routing.affinities, routing.experts, routing.gates)]
    assert loss.requires_grad  # and with it the graph is alive
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "ffn", [["dense"], ["moe"], ["moe", "num_shared=0"], ["moe", "max_devices=3"], ["gshard"], ["switch"], ["hash"]]
)
@pytest.mark.parametrize(
    "attention",
    [
        ["mha"],
        ["gqa"],
        ["mqa", "rope_dim=8"],
        ["mha", "key_norm=true"],
        ["mla"],
        ["mla", "q_latent_dim=20"],
        ["mla", "v_dim=24"],
    ],
)
def test_activations_are_what_autograd_keeps(attention, ffn, precision):
    overrides = [
        *SMALL,
        f"model/attention={attention[0]}",
        *(f"model.attention.{text}" for text in attention[1:]),
        f"model/ffn={ffn[0]}",
        *(f"model.ffn.{text}" for text in ffn[1:]),
    ]
    said = training_memory(dsv2.load(overrides).model, batch=2, length=48, precision=precision).activation_bytes
    assert said == pytest.approx(kept_bytes(overrides, precision, 2, 48), rel=TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute_layers", [1, 2, 4])
def test_layers_that_are_computed_again_keep_their_inputs(recompute_layers, precision):
    overrides = [*SMALL, "model.num_layers=4", "model/ffn=moe"]
    model, more = dsv2.load(overrides).model, {"precision": precision, "recompute_layers": recompute_layers}
    said = training_memory(model, batch=2, length=48, **more).activation_bytes
    assert said == pytest.approx(kept_bytes(overrides, batch=2, length=48, **more), rel=TOLERANCE)
    assert said < training_memory(model, batch=2, length=48, precision=precision).activation_bytes


def test_values_wider_than_keys_keep_the_square():
    """No fused kernel there: four times the length, and a token keeps more; with narrower values it does not."""
    wide = [*SMALL, "model/attention=mla", "model.attention.v_dim=40"]
    said = training_memory(dsv2.load(wide).model, batch=2, length=48).activation_bytes
    assert said == pytest.approx(kept_bytes(wide, "fp32", 2, 48), rel=TOLERANCE)
    per_token = [
        training_memory(dsv2.load(overrides).model, length=length).activation_bytes_per_token
        for overrides in (wide, SMALL)
        for length in (1024, 4096)
    ]
    assert per_token[1] > 1.5 * per_token[0]
    assert per_token[2] == per_token[3]


def test_states_and_sums():
    model = dsv2.load(["model=v2_lite"]).model
    memory = training_memory(model, batch=3, length=100)
    total = account(model).total_params
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * total, 4 * total, 8 * total)
    assert memory.total == 16 * total + sum(item.bytes for item in memory.activations)
    assert memory.activation_bytes_per_token == memory.activation_bytes / 300
    assert sum(item["bytes"] for item in memory.as_dict()["activations"]) == memory.activation_bytes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"length": 0}, "length=0"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"recompute_layers": 3}, "recompute_layers=3 is not valid: 0 to 2"),
    ],
)
def test_mistakes_are_named(more, message):
    with pytest.raises(ConfigError, match=message):
        training_memory(dsv2.load(SMALL).model, **more)
