"""Interventions on models whose answer is known: what carries the prediction is known because it was put there."""

import math

import numpy as np
import pytest
import torch

from dsv2.data.source import Batch
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.gshard import GShard
from dsv2.models.moe.hash import Hash
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.loss_free import LossFree
from dsv2.models.moe.v3 import V3
from dsv2.models.transformer import Transformer
from dsv2.routing.interventions import DoesNotApply, compared, fewer_experts, shared_off, top_masked
from dsv2.routing.observed import losses_of, observe
from tests.references.routing import LIMITED, build, text
from tests.references.tolerances import FLOAT32

V = 4  # tokens; the next one of v is v + 1, modulo 4


def counting(sequences: int = 3, length: int = 8) -> Batch:
    tokens = (torch.arange(length + 1) + torch.arange(sequences)[:, None]) % V
    return Batch(tokens[:, :-1], tokens[:, 1:], None)


def mean(model: Transformer, batch: Batch) -> float:
    return losses_of(model, batch, batch_size=2).mean


@torch.no_grad()
def planted(ffn: MoE.Config, where: str) -> Transformer:
    """One layer in which only `where`, the shared expert or the routed ones of the highest affinity, can predict.

    Tokens are the axes 0 to 3 and predictions the axes 4 to 7, which the head alone reads; attention is switched off.
    """
    model = build(ffn, vocab=V, dim=2 * V, layers=1)
    for weight in model.parameters():
        weight.zero_()
    eye = torch.eye(V)
    model.embedding[:, :V] = eye
    model.head[:, V:] = 10 * eye
    layer = model.layers[0]
    for norm in (layer.attention_norm, layer.ffn_norm, model.norm):
        norm.w.fill_(1.0)
    follows = torch.zeros(2 * V, V)  # (d, W)
    follows[V:] = eye.roll(1, 0)
    if where == "shared":
        layer.ffn.shared.w_gate_up[:V, :V] = layer.ffn.shared.w_gate_up[V:, :V] = 5 * eye
        layer.ffn.shared.w_down.copy_(follows)
    else:  # the expert of a token is its own, and it alone knows what follows
        layer.ffn.router.w[:V, :V] = eye
        layer.ffn.experts.w_gate_up[:, :V, :V] = layer.ffn.experts.w_gate_up[:, :V, V:] = 5 * eye
        for token in range(V):
            layer.ffn.experts.w_down[token, token] = follows[:, token]
    return model


def test_without_the_shared_expert_that_knows_everything_the_loss_is_uniform() -> None:
    model = planted(MoE.Config(num_experts=4, top_k=2, expert_dim=V, num_shared=1), "shared")
    losses = {name: mean(other, counting()) for name, other in shared_off(model).items()}
    assert losses["as trained"] == mean(model, counting()) < 0.01
    assert losses["one more routed"] == losses["as trained"]  # the routed ones add nothing
    assert losses["shared off"] == pytest.approx(math.log(V), rel=FLOAT32)
    assert losses["shared off, one more routed"] == pytest.approx(math.log(V), rel=FLOAT32)


def test_masking_the_only_expert_that_knows_makes_the_loss_uniform() -> None:
    model = planted(MoE.Config(num_experts=4, top_k=1, expert_dim=V), "routed")
    masked = {count: mean(other, counting()) for count, other in top_masked(model, (0, 1 / 4, 1 / 2)).items()}
    assert list(masked) == [0, 1, 2]
    assert masked[0] == mean(model, counting()) < 0.1
    assert masked[1] == pytest.approx(math.log(V), rel=FLOAT32)
    assert masked[2] == pytest.approx(math.log(V), rel=FLOAT32)


def test_nothing_masked_and_all_experts_kept_are_the_model_itself() -> None:
    model, batch = build(LIMITED), text()
    plain = losses_of(model, batch, batch_size=4)
    for same in (top_masked(model)[0], fewer_experts(model)[4], shared_off(model)["as trained"]):
        np.testing.assert_array_equal(losses_of(same, batch, batch_size=4).nats, plain.nats)


def test_masked_experts_are_those_of_the_highest_affinity() -> None:
    """In the first layer, which sees the same as unmasked: the next K take their place, with their own affinities."""
    model, tokens = build(MoE.Config(num_experts=16, top_k=3, expert_dim=8)), text().inputs
    with torch.no_grad():
        free = model(tokens).routings[0].affinities
        masked = top_masked(model, (0, 1 / 8))[2](tokens)
    ranked = free.argsort(-1, descending=True)
    assert torch.equal(masked.routings[0].experts, ranked[..., 2:5])
    assert torch.equal(masked.routings[0].gates, free.gather(-1, ranked[..., 2:5]))
    second = masked.routings[1]
    assert (second.affinities == 0).sum(-1).eq(2).all()
    assert (second.gates > 0).all()


@pytest.mark.parametrize("kind", [LossFree, V3])
def test_masked_experts_are_not_brought_back_by_a_bias(kind: type[LossFree]) -> None:
    """Also not by one that otherwise chooses two experts for every token."""
    model = build(kind.Config(num_experts=8, top_k=2, expert_dim=4))
    for layer in model.layers:
        layer.ffn.bias[:2] = 5.0
    batch = text()
    before = observe(model, batch, batch_size=3)
    masked = observe(top_masked(model, ratios=(0, 1 / 4))[2], batch, batch_size=3)
    assert set(before.experts.ravel().tolist()) == {0, 1}
    assert (masked.gates > 0).all(), "a masked expert was chosen"
    assert not np.array_equal(masked.experts, before.experts)


def test_fewer_experts_are_the_first_of_those_chosen() -> None:
    model, tokens = build(MoE.Config(num_experts=16, top_k=3, expert_dim=8, num_shared=1), layers=1), text().inputs
    models = fewer_experts(model)
    assert list(models) == [3, 2, 1]
    with torch.no_grad():
        (routing,) = model(tokens).routings
        expected = model(tokens, routings=[routing._replace(experts=routing.experts[..., :1])]).logits
        assert torch.equal(models[1](tokens).logits, expected)


def test_the_model_is_left_as_it_was_and_its_weights_are_shared() -> None:
    model, tokens = build(LIMITED), text().inputs
    with torch.no_grad():
        before = model(tokens).logits
        siblings = [*shared_off(model).values(), *fewer_experts(model).values(), *top_masked(model).values()]
        for other in siblings:
            assert not torch.equal(other(tokens).logits, before) or other.config == model.config
            assert other.embedding.data_ptr() == model.embedding.data_ptr()
        assert torch.equal(model(tokens).logits, before)
    assert model.config.ffn == LIMITED


def test_what_does_not_apply_says_why() -> None:
    dense = build(SwiGLU.Config(width=8))
    for intervention in (shared_off, fewer_experts, top_masked):
        with pytest.raises(DoesNotApply, match="a dense model has no routing"):
            intervention(dense)
    with pytest.raises(DoesNotApply, match="no shared experts"):
        shared_off(build(MoE.Config(num_experts=4, top_k=2, expert_dim=8)))
    single = build(MoE.Config(num_experts=2, top_k=1, expert_dim=8))
    with pytest.raises(DoesNotApply, match="fewer than its 1 experts"):
        fewer_experts(single)
    with pytest.raises(DoesNotApply, match="too few to mask"):
        top_masked(build(MoE.Config(num_experts=2, top_k=2, expert_dim=8)))
    full = build(MoE.Config(num_experts=2, top_k=2, expert_dim=8, num_shared=1))
    assert list(shared_off(full)) == ["as trained", "shared off"]  # there is no third expert to route to


def test_the_baselines_allow_what_their_type_allows() -> None:
    """GShard keeps its two experts and their renormalised gates; a hash has no affinities to mask by."""
    tokens = text().inputs
    gshard = build(GShard.Config(num_experts=8, expert_dim=8, num_shared=1))
    assert list(shared_off(gshard)) == ["as trained", "shared off"]
    with pytest.raises(DoesNotApply, match="fewer than its 2 experts"):
        fewer_experts(gshard)
    masked = top_masked(gshard)
    assert list(masked) == [0, 1, 2]
    with torch.no_grad():
        first = gshard(tokens).routings[0].affinities.argsort(-1, descending=True)
        (routing, _) = masked[2](tokens).routings
    assert torch.equal(routing.experts, first[..., 2:4])
    torch.testing.assert_close(routing.gates.sum(-1), torch.ones(tokens.shape))
    hashed = build(Hash.Config(num_experts=8, expert_dim=8))
    with pytest.raises(DoesNotApply, match="not chosen by affinity"):
        top_masked(hashed)
    assert (observe(hashed, text(), batch_size=4).entropy == 0).all()


def test_the_table_is_paired_with_its_first_row() -> None:
    model, batch = build(LIMITED), text()
    table = compared(fewer_experts(model), lambda other: losses_of(other, batch, batch_size=4), column="experts")
    assert table.columns.tolist() == ["experts", "loss", "difference", "low", "high"]
    assert table["experts"].tolist() == [4, 3, 2, 1]
    np.testing.assert_allclose(table["difference"], table["loss"] - table["loss"][0], atol=1e-12)
    assert (table.loc[0, ["difference", "low", "high"]] == 0).all()
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()
