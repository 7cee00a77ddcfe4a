"""The whole model against loops; caches, replayed routings, and that a call leaves nothing behind."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.inference.cache import allocate_model
from dsv2.kernels.choice import using
from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import V3, GShard, Hash, LossFree, MoE, Sigmoid, Switch
from dsv2.models.moe.dropping import Dropping
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.moe_checks import SIZES, TOKENS, small_model
from tests.references.tolerances import EXACT, FLOAT32, FLOAT32_MODULE, close, same_values_and_gradients

ATTENTIONS = ["mha", "gqa", "mqa", "mla"]
BASELINES = {"gshard": GShard, "switch": Switch, "hash": Hash}
SMALL = ["model.dim=16", "model.vocab_size=2048", "model.init_std=0.3"]


def build(*overrides: str, seed: int = 0) -> Transformer:
    return dsv2.load([*SMALL, *overrides]).model.build(seed=seed)


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(0, 2048, (batch, length), generator=torch.Generator().manual_seed(1))


# ---- against loops ---------------------------------------------------------------------------------------------------

LOOPS: dict[str, tuple[Any, Any, dict[str, int]]] = {  # our config, the loops, and what these are told of sizes
    "GQA": (
        GQA.Config(num_heads=2, num_kv_heads=1, head_dim=4),
        references.gqa,
        {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "rope_dim": 4},
    ),
    "MLA": (
        MLA.Config(num_heads=2, head_dim=2, rope_dim=4, v_dim=3, kv_latent_dim=5, q_latent_dim=4),
        references.mla,
        {"num_heads": 2, "head_dim": 2, "rope_dim": 4, "v_dim": 3},
    ),
}


@pytest.mark.parametrize("dropping", [False, True], ids=["all", "dropping"])
@pytest.mark.parametrize(("kind", "tied"), [("GQA", True), ("MLA", False)])
def test_logits_and_gradients_are_those_of_loops(kind: str, tied: bool, dropping: bool) -> None:
    """One dense layer, then two MoE layers; with dropping, the second sequence is exempt in both."""
    attention, attention_by_loops, sizes = LOOPS[kind]
    config = Transformer.Config(
        vocab_size=7,
        dim=6,
        num_layers=3,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=5),
        attention=attention,
        ffn=MoE.Config(
            num_experts=4,
            top_k=2,
            expert_dim=3,
            num_shared=1,
            num_devices=2,
            routed_scaling_factor=4.0,
            dropping=Dropping.Config(capacity_factor=0.5) if dropping else None,
        ),
        norm_eps=1e-2,  # large enough to be seen
        tie_embeddings=tied,
    )
    model = references.randomise(config.build().double(), seed=1).train()
    read, exempt = torch.tensor([[1, 5, 5, 2], [0, 6, 3, 1]]), torch.tensor([False, True])
    output = model(read, exempt=exempt)
    assert len(output.routings) == 2

    def attend(h: Tensor, w: references.Weights) -> Tensor:
        return attention_by_loops(h, w, **sizes, thetas=references.rope_frequencies(4, 10000.0))

    def feed(h: Tensor, w: references.Weights, layer: int) -> Tensor:
        if layer == 0:
            gate, up = references.halves(w["w_gate_up"])
            rows = [references.swiglu(row, gate, up, w["w_down"]) for row in h.flatten(0, 1)]
            return torch.stack(rows).reshape(h.shape)
        s = references.affinities(h, w["router.w"])
        experts, _ = references.route(s.detach(), 2)
        dropped = references.drop(s.detach(), experts, 2, 0.5, exempt) if dropping else None
        assert not dropping or dropped[0].any()
        return references.moe(h, w, experts=experts, expert_dim=3, scaling=4.0, dropped=dropped)

    leaves = dict(model.named_parameters())
    own = references.twin(leaves)
    logits = references.transformer(read, own, num_layers=3, eps=1e-2, attention=attend, ffn=feed)
    same_values_and_gradients(output.logits, logits, leaves, own, FLOAT32)


# ---- caches ----------------------------------------------------------------------------------------------------------


def test_caches_of_another_batch_or_model_are_refused() -> None:
    model = build("model/attention=mla").eval()
    caches = allocate_model(model, batch_size=3, max_length=9)
    with pytest.raises(ValueError, match="tokens has 1 rows: must have as many as the caches, 3"):
        model(tokens()[:1], caches=caches)
    for wrong in ([], caches.layers[:-1]):
        with pytest.raises(ValueError, match=rf"caches has length {len(wrong)}: must have one per layer, 3"):
            model(tokens(), caches=wrong)
    assert not caches.lengths.any()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 1, 3]])
def test_cached_logits_are_the_uncached_ones(attention: str, chunks: list[int]) -> None:
    model = build(f"model/attention={attention}").eval()
    with torch.no_grad():
        caches = allocate_model(model, batch_size=2, max_length=9)
        pieces = [model(part, caches=caches).logits for part in tokens().split(chunks, dim=1)]
        close(torch.cat(pieces, dim=1), model(tokens()).logits, FLOAT32_MODULE)
    assert caches.lengths.tolist() == [9, 9]


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 2]])
def test_decoding_is_the_whole_sequence_and_company_does_not_matter(kind: str, chunks: list[int]) -> None:
    """Neither caches nor what shares the batch change a result in evaluation, however small the room in training."""
    more = {} if kind == "hash" else {"capacity_factor": 0.1}
    model = small_model(BASELINES[kind].Config(**SIZES, **more)).float().eval()
    with torch.no_grad():
        caches = allocate_model(model, batch_size=2, max_length=7)
        pieces = [model(part, caches=caches).logits for part in TOKENS.split(chunks, dim=1)]
        whole = model(TOKENS).logits
        close(torch.cat(pieces, dim=1), whole, FLOAT32_MODULE)
        close(model(TOKENS[1:]).logits, whole[1:], FLOAT32_MODULE)
    generated = dsv2.generate(model, TOKENS[:, :3], max_new_tokens=3)
    for length in (3, 4, 5):
        assert torch.equal(model(generated[:, :length]).logits[:, -1].argmax(-1), generated[:, length])


# ---- routings --------------------------------------------------------------------------------------------------------


def test_replayed_experts_come_with_live_gates() -> None:
    model, other = build().eval(), build(seed=1).eval()
    recorded = other(tokens()).routings
    free, replayed = model(tokens()), model(tokens(), routings=recorded)
    assert not torch.equal(free.routings[0].experts, recorded[0].experts)
    for routing, record in zip(replayed.routings, recorded, strict=True):
        assert torch.equal(routing.experts, record.experts)
        assert torch.equal(routing.gates, routing.affinities.gather(-1, record.experts))
    again = model(tokens(), routings=free.routings)
    close(again.logits, free.logits, EXACT)


@pytest.mark.parametrize("kind", BASELINES)
def test_baselines_replay_recorded_choices_with_live_gates(kind: str) -> None:
    model, other = (small_model(BASELINES[kind].Config(**SIZES)).eval() for _ in range(2))
    recorded = other((TOKENS + 1) % 10).routings
    replayed = model(TOKENS, routings=recorded)
    assert not torch.equal(model(TOKENS).routings[0].experts, recorded[0].experts)
    for routing, record in zip(replayed.routings, recorded, strict=True):
        assert torch.equal(routing.experts, record.experts)
        live = routing.affinities.gather(-1, record.experts)
        close(routing.gates, live / live.sum(-1, keepdim=True) if kind == "gshard" else live, FLOAT32)
    close(model(TOKENS, routings=model(TOKENS).routings).logits, model(TOKENS).logits, EXACT)


def test_the_first_layers_are_dense_and_the_rest_route() -> None:
    output = build("model.num_layers=4", "model.num_dense_layers=2")(tokens())
    assert len(output.routings) == 2
    assert output.logits.shape == (2, 9, 2048)
    assert output.routings[0].experts.shape == (2, 9, 6)
    assert build("model/ffn=dense")(tokens()).routings == ()


def test_layers_draw_apart() -> None:
    """Two layers of one step, and two steps, share no seed."""
    seen: list[int | None] = []
    model = small_model(GShard.Config(**SIZES)).train()
    for layer in model.layers:
        layer.ffn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].seed))
    for seed in (0, 1, 2):
        model(TOKENS, seed=seed)
    assert len(set(seen)) == len(seen) == 6


# ---- what a call may see and leave behind ----------------------------------------------------------------------------


def test_a_call_leaves_nothing_behind() -> None:
    model = build("model/ffn/dropping=device").train()
    assert not list(model.buffers())
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    first = model(tokens()).logits
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert before == after
    assert torch.equal(first, model(tokens()).logits)


def test_later_tokens_do_not_reach_earlier_ones() -> None:
    model, changed = build().eval(), tokens().clone()
    changed[:, 5:] = 0
    close(model(changed).logits[:, :5], model(tokens()).logits[:, :5], FLOAT32_MODULE)


# ---- config ----------------------------------------------------------------------------------------------------------


def test_tied_embeddings_are_one_tensor() -> None:
    model = build("model.tie_embeddings=true")
    model(tokens()).logits.sum().backward()
    assert model.head is None
    assert model.embedding.grad is not None


FFNS = {"dense": SwiGLU, "moe": MoE, "loss_free": LossFree, "sigmoid": Sigmoid, "v3": V3, **BASELINES}


@pytest.mark.parametrize(("name", "kind"), FFNS.items())
def test_every_ffn_comes_from_its_yaml(name: str, kind: Any) -> None:
    config = dsv2.load([f"model/ffn={name}"]).model
    assert type(config.ffn) is kind.Config
    assert type(config.build().layers[-1].ffn) is kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 is not valid: positive"),
        ({"dim": 0}, "dim=0 is not valid: positive"),
        ({"num_layers": 0}, "num_layers=0 is not valid: positive"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 is not valid: positive"),
        ({"init_std": 0.0}, "init_std=0.0 is not valid: positive"),
        ({"embedding_std": 0.0}, "embedding_std=0.0 is not valid: positive, or null"),
        ({"num_dense_layers": -1}, "num_dense_layers=-1 is not valid: between 0 and num_layers=2"),
        ({"num_dense_layers": 3}, "num_dense_layers=3 is not valid: between 0 and num_layers=2"),
        ({"num_dense_layers": 1}, "dense=None is not valid: required for num_dense_layers=1"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    sizes = {"vocab_size": 10, "dim": 6, "num_layers": 2, "ffn": SwiGLU.Config(width=3)}
    with pytest.raises(ConfigError, match=f"^{message}"):
        Transformer.Config(**sizes | {"attention": LOOPS["GQA"][0]} | change)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.int64), "tokens has shape (0, 3) torch.int64: must be a tensor (B, T) of int64"),
        (torch.zeros(2, 0, dtype=torch.int64), "tokens has shape (2, 0) torch.int64"),
        (torch.zeros(3, dtype=torch.int64), "tokens has shape (3,) torch.int64"),
        (torch.zeros(2, 3), "tokens has shape (2, 3) torch.float32"),
        (torch.zeros(2, 3, dtype=torch.bool), "tokens has shape (2, 3) torch.bool"),
        ([[1, 2]], "tokens has type list"),
        (torch.tensor([[0, 2048]]), "tokens has ids from 0 to 2048: must be 0 to 2047"),
        (torch.tensor([[-1, 0]]), "tokens has ids from -1 to 0: must be 0 to 2047"),
    ],
    ids=str,
)
def test_what_is_no_batch_of_the_vocabulary_is_refused(tokens: object, message: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        model(tokens)
    with pytest.raises((ValueError, TypeError), match=r"^tokens has "):
        dsv2.generate(model, tokens, max_new_tokens=1)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.uint8, torch.int16, torch.float32])
def test_positions_are_int64(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"^positions has shape .*: must be one integer per token"):
        build()(torch.zeros(1, 2, dtype=torch.int64), positions=torch.zeros(1, 2, dtype=dtype))


# ---- layers that are computed again in backward ----------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize("ffn", ["moe", "gshard", "switch", "dense"])
def test_recomputed_layers_change_no_bit(ffn, kernels):
    """Loss, gradients, and routing, of which there is one per layer; the random draws of routers are repeated."""
    ran = []
    for layers in (0, 1, 3):
        model = build(f"model/ffn={ffn}", "model.num_layers=3").train()
        model.recompute_layers = layers
        called: list[torch.nn.Module] = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda layer, _, called=called: called.append(layer))
        with using(kernels):
            x, routings = model.hidden(tokens(), seed=5)
            loss = model.mean_nats(x, tokens()) + sum(r.affinities.square().sum() + r.gates.sum() for r in routings)
        loss.backward()
        assert called == [*model.layers, *reversed(model.layers[:layers])]
        ran.append((loss, [weight.grad for weight in model.parameters()], routings))
    for loss, grads, routings in ran[1:]:
        assert torch.equal(loss, ran[0][0])
        assert len(routings) == len(ran[0][2])
        assert all(torch.equal(one.experts, other.experts) for one, other in zip(routings, ran[0][2], strict=True))
        assert all(torch.equal(one, other) for one, other in zip(grads, ran[0][1], strict=True))


def test_nothing_is_recomputed_without_gradients(monkeypatch):
    model = build("model.num_layers=2")
    model.recompute_layers = 2
    monkeypatch.setattr("dsv2.models.transformer.checkpoint", lambda *_, **__: pytest.fail("computed again"))
    with torch.no_grad():
        model(tokens())


# ---- logits of the routers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ffn", ["moe", "loss_free", "gshard", "switch"])
@pytest.mark.parametrize("layers", [0, 3])
def test_logits_of_routers_are_added_once(ffn: str, layers: int) -> None:
    """One per MoE layer, also of layers that are computed again; their softmax is what the router gave."""
    model = build(f"model/ffn={ffn}", "model.num_layers=3").train()
    model.recompute_layers = layers
    logits: list[torch.Tensor] = []
    _, routings = model.hidden(tokens(), seed=5, router_logits=logits)
    if ffn != "switch":  # whose router sees noise
        for own, routing in zip(logits, routings, strict=True):
            close(own.softmax(-1), routing.affinities, FLOAT32)
    sum(own.square().sum() for own in logits).backward()
    assert len(logits) == len(routings) == len(model.config.moe_layers)


@pytest.mark.parametrize("ffn", ["dense", "hash", "sigmoid", "v3"])
def test_routers_without_softmax_have_none(ffn: str) -> None:
    logits: list[torch.Tensor] = []
    build(f"model/ffn={ffn}").hidden(tokens(), router_logits=logits)
    assert not logits
