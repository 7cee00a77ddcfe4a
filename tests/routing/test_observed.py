"""One pass over validation text: its losses, its routing, and the interval of a change of loss."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dsv2.data.source import NOT_SCORED
from dsv2.evaluation.validation import evaluate
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.sigmoid import Sigmoid
from dsv2.routing.observed import SequenceLosses, difference, losses_of, observe
from tests.references.routing import LIMITED, build, text
from tests.references.tolerances import FLOAT32


def test_the_interval_is_students_over_sequences() -> None:
    rng = np.random.default_rng(0)
    plain = SequenceLosses(rng.normal(50, 5, 12), np.full(12, 10.0))
    other = SequenceLosses(plain.nats + rng.normal(1, 2, 12), plain.scored)
    expected = stats.ttest_rel(other.nats / 10, plain.nats / 10).confidence_interval(0.95)
    change = difference(other, plain)
    assert change.mean == pytest.approx(other.mean - plain.mean)
    assert (change.low, change.high) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="not of the same sequences"):
        difference(other, SequenceLosses(plain.nats, plain.scored + 1))
    alone = SequenceLosses(plain.nats[:1], plain.scored[:1])
    assert difference(alone, alone) == (0.0, -math.inf, math.inf)


def test_one_pass_sees_what_evaluation_and_the_model_say() -> None:
    model, batch = build(LIMITED), text()
    targets = batch.targets.clone()
    targets[0, :7] = NOT_SCORED
    batch = batch._replace(targets=targets)
    heard: list[int] = []
    observed = observe(model, batch, batch_size=4, seen=heard.append)
    assert heard == [4, 2]
    assert observed.losses.scored.tolist() == [3, 10, 10, 10, 10, 10]
    evaluated = evaluate(model, batch, batch_size=4, token_bytes=None)
    assert observed.losses.mean == pytest.approx(evaluated["val/loss"], rel=FLOAT32)
    with torch.no_grad():
        routings = model(batch.inputs).routings
    assert observed.layers == (0, 1)
    for layer, routing in enumerate(routings):
        np.testing.assert_array_equal(observed.experts[layer], routing.experts)
        np.testing.assert_allclose(observed.gates[layer], routing.gates, rtol=FLOAT32)
        np.testing.assert_allclose(observed.mean_affinity[layer], routing.affinities.mean((0, 1)), rtol=FLOAT32)
    with pytest.raises(ValueError, match="there is no routing"):
        observe(build(SwiGLU.Config(width=8)), batch, batch_size=4)


def test_sigmoid_affinities_are_observed_as_shares() -> None:
    """Which add up to 1 and have an entropy of at most log E; the affinities themselves do neither."""
    model, batch = build(Sigmoid.Config(num_experts=8, top_k=2, expert_dim=4)), text()
    observed = observe(model, batch, batch_size=6)
    with torch.no_grad():
        affinities = model(batch.inputs).routings[0].affinities.double()
    shares = affinities / affinities.sum(-1, keepdim=True)
    np.testing.assert_allclose(observed.mean_affinity.sum(1), 1, rtol=FLOAT32)
    np.testing.assert_allclose(observed.mean_affinity[0], shares.mean((0, 1)), rtol=FLOAT32)
    entropy = -(shares * shares.log()).sum(-1) / math.log(8)
    np.testing.assert_allclose(observed.entropy[0], entropy, rtol=1e-5)
    assert observed.entropy.max() <= 1 + FLOAT32


def test_losses_do_not_depend_on_the_batch_size_nor_on_the_routing_being_recorded() -> None:
    model, batch = build(LIMITED), text()
    losses = losses_of(model, batch, batch_size=6)
    np.testing.assert_allclose(losses_of(model, batch, batch_size=1).nats, losses.nats, rtol=FLOAT32)
    np.testing.assert_array_equal(observe(model, batch, batch_size=6).losses.nats, losses.nats)
    assert losses.scored.tolist() == [10] * 6
    assert losses.mean == pytest.approx(losses.nats.sum() / 60)
