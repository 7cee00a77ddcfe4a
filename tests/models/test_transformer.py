"""The whole model: caches, replayed routings, paired initial weights, and that a call leaves nothing behind."""

import pytest
import torch

import dsv2
from dsv2.inference.cache import allocate, allocate_model
from tests.references.tolerances import FLOAT32_MODULE, close

ATTENTIONS = ["mha", "gqa", "mqa", "mla"]
SMALL = ["model.dim=16", "model.vocab_size=2048", "model.init_std=0.3"]


def build(*overrides, seed=0):
    return dsv2.load([*SMALL, *overrides]).model.build(seed=seed)


def tokens(batch=2, length=9):
    return torch.randint(0, 2048, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 1, 3]])
def test_cached_logits_are_the_uncached_ones(attention, chunks):
    model = build(f"model/attention={attention}").eval()
    with torch.no_grad():
        caches = allocate_model(model, batch_size=2, max_length=9)
        pieces = [model(part, caches=caches).logits for part in tokens().split(chunks, dim=1)]
        close(torch.cat(pieces, dim=1), model(tokens()).logits, FLOAT32_MODULE)
    assert all(cache.length == 9 for cache in caches)


def test_a_full_cache_says_so():
    model = build().eval()
    caches = allocate_model(model, batch_size=2, max_length=8)
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
        model(tokens(), caches=caches)
    assert caches[0].length == 0


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_cache_holds_what_the_accounting_counts(attention):
    config = dsv2.load([f"model/attention={attention}"]).model
    cache = allocate(config.attention, batch_size=1, max_length=1)
    held = config.num_layers * sum(tensor.numel() for tensor in cache.tensors)
    assert held == dsv2.account(config).kv_elements_per_token


def test_replayed_experts_come_with_live_gates():
    model, other = build().eval(), build(seed=1).eval()
    recorded = other(tokens()).routings
    free, replayed = model(tokens()), model(tokens(), routings=recorded)
    assert not torch.equal(free.routings[0].experts, recorded[0].experts)
    for routing, record in zip(replayed.routings, recorded, strict=True):
        assert torch.equal(routing.experts, record.experts)
        assert torch.equal(routing.gates, routing.affinities.gather(-1, record.experts))
    again = model(tokens(), routings=free.routings)
    close(again.logits, free.logits, 0.0)


def test_the_first_layers_are_dense_and_the_rest_route():
    output = build("model.num_layers=4", "model.num_dense_layers=2")(tokens())
    assert len(output.routings) == 2
    assert output.logits.shape == (2, 9, 2048)
    assert output.routings[0].experts.shape == (2, 9, 6)
    assert build("model/ffn=dense")(tokens()).routings == ()


def test_tied_embeddings_are_one_tensor():
    model = build("model.tie_embeddings=true")
    model(tokens()).logits.sum().backward()
    assert model.head is None
    assert model.embedding.grad is not None


def test_what_two_models_share_starts_alike():
    mla, mha = (dict(build(f"model/attention={kind}").named_parameters()) for kind in ("mla", "mha"))
    shared = [name for name in mla if name in mha and mla[name].shape == mha[name].shape]
    assert {"embedding", "head", "layers.1.ffn.experts.w_down", "layers.0.attention.w_o"} <= set(shared)
    assert all(torch.equal(mla[name], mha[name]) for name in shared)
    other = dict(build(seed=1).named_parameters())
    assert not any(torch.equal(mla[name], other[name]) for name in mla if mla[name].dim() > 1)


@pytest.mark.parametrize(("overrides", "embedding"), [([], 0.006), (["model.embedding_std=0.5"], 0.5)])
def test_initial_weights_have_the_std_of_the_config(overrides, embedding):
    model = dsv2.load(["model.init_std=0.006", *overrides]).model.build()
    weights = dict(model.named_parameters())
    assert weights["embedding"].std().item() == pytest.approx(embedding, rel=0.01)
    assert weights["head"].std().item() == pytest.approx(0.006, rel=0.01)
    assert all((weight == 1).all() for weight in weights.values() if weight.dim() == 1)


def test_a_call_leaves_nothing_behind():
    model = build("model.ffn.dropping={_target_: dsv2.models.moe.dropping.Dropping.Config}").train()
    assert not list(model.buffers())
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    first = model(tokens()).logits
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert before == after
    assert torch.equal(first, model(tokens()).logits)


def test_later_tokens_do_not_reach_earlier_ones():
    model, changed = build().eval(), tokens().clone()
    changed[:, 5:] = 0
    close(model(changed).logits[:, :5], model(tokens()).logits[:, :5], FLOAT32_MODULE)


def test_weights_of_one_shape_start_apart():
    """Each draws from its own name: no two layers, and no two weights of a layer, are copies."""
    weights = [weight for weight in build("model.num_layers=3").parameters() if weight.dim() > 1]
    for index, weight in enumerate(weights):
        alike = [other for other in weights[:index] if other.shape == weight.shape]
        assert not any(torch.equal(weight, other) for other in alike)
