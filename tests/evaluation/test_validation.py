"""Loss, bits per byte and expert load of a validation set, against a loop over its sequences one by one."""

import math

import numpy as np
import pytest
import torch

from dsv2.data.source import NOT_SCORED, Batch, count_bytes
from dsv2.evaluation.validation import evaluate, loss_at_capacity
from dsv2.models.attention import MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.dropping import Dropping
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE

VOCAB, SEQUENCES, LENGTH = 11, 7, 5
TOKEN_BYTES = np.array([0, 1, 1, 2, 3, 5, 1, 4, 2, 1, 7], dtype=np.int32)  # token 0 is no text


def model(ffn: MoE.Config | SwiGLU.Config | None = None) -> Transformer:
    """2 MoE layers behind a dense one, in training mode, with room for almost no pair there."""
    ffn = ffn or MoE.Config(
        num_experts=6,
        top_k=2,
        expert_dim=4,
        num_devices=3,
        routed_scaling_factor=16.0,
        dropping=Dropping.Config(capacity_factor=0.1),
    )
    config = Transformer.Config(
        vocab_size=VOCAB,
        dim=8,
        num_layers=3,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=8),
        attention=MLA.Config(num_heads=2, head_dim=4, rope_dim=2, v_dim=4, kv_latent_dim=4),
        ffn=ffn,
    )
    return references.randomise(config.build(), seed=0).train()


def sequences() -> Batch:
    """7 sequences of 5 tokens, of which the last two and some others are hardly scored."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCAB, (SEQUENCES, LENGTH + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[1, :2] = NOT_SCORED
    targets[5:, 1:] = NOT_SCORED
    return Batch(inputs, targets, None)


@torch.no_grad()
def looped(model: Transformer, batch: Batch) -> tuple[float, int]:
    """Nats and number of the scored targets, a sequence and a token at a time, nothing dropped."""
    nats, scored = 0.0, 0
    model.eval()
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        logits = model(inputs[None]).logits[0].double()
        for t in range(LENGTH):
            if targets[t] != NOT_SCORED:
                nats += float(references.cross_entropy(logits[None, t : t + 1], targets[None, t : t + 1]))
                scored += 1
    model.train()
    return nats, scored


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_loss_and_bits_per_byte_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    """3 leaves a last batch of one sequence, with fewer scored tokens than the others."""
    network, batch = model(), sequences()
    nats, scored = looped(network, batch)
    num_bytes = sum(int(TOKEN_BYTES[token]) for token in batch.targets.flatten().tolist() if token != NOT_SCORED)
    metrics = evaluate(network, batch, batch_size=batch_size, token_bytes=TOKEN_BYTES)
    assert metrics["val/loss"] == pytest.approx(nats / scored, rel=FLOAT32_MODULE)
    assert metrics["val/bpb"] == pytest.approx(nats / num_bytes / math.log(2), rel=FLOAT32_MODULE)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_accuracy_is_the_share_of_scored_targets_predicted(batch_size: int) -> None:
    network, batch = model(), sequences()
    with torch.no_grad():
        predicted = network.eval()(batch.inputs).logits.argmax(-1)
    batch.targets[0] = predicted[0]  # five are right, at least
    right, scored = 0, 0
    for guess, target in zip(predicted.flatten().tolist(), batch.targets.flatten().tolist(), strict=True):
        scored += target != NOT_SCORED
        right += target == guess
    metrics = evaluate(network.train(), batch, batch_size=batch_size, token_bytes=None)
    assert metrics["val/accuracy"] == right / scored
    assert 0 < right < scored


def test_bits_per_byte_of_domains_add_up() -> None:
    """Each domain's is that of its targets alone; weighted by their bytes they make the whole."""
    network, batch = model(), sequences()
    domains = torch.tensor([0, 0, 0, 0, 2, 2, 2], dtype=torch.int8)[:, None].repeat(1, LENGTH)
    domains[0, 3:] = 2  # a window with an end of a document in it
    batch = batch._replace(domains=domains)
    names = ("code", "empty", "words")
    metrics = evaluate(network, batch, batch_size=3, token_bytes=TOKEN_BYTES, domains=names)
    assert {name for name in metrics if "bpb" in name} == {"val/bpb", "val/bpb_code", "val/bpb_words"}
    total = 0.0
    for number, name in ((0, "code"), (2, "words")):
        alone = batch._replace(targets=batch.targets.where(domains == number, NOT_SCORED))
        own = evaluate(network, alone, batch_size=3, token_bytes=TOKEN_BYTES)["val/bpb"]
        assert metrics[f"val/bpb_{name}"] == pytest.approx(own, rel=FLOAT32)
        total += own * count_bytes(alone.targets, TOKEN_BYTES)
    assert metrics["val/bpb"] == pytest.approx(total / count_bytes(batch.targets, TOKEN_BYTES), rel=FLOAT32)
    assert "val/bpb_code" not in evaluate(network, batch, batch_size=3, token_bytes=TOKEN_BYTES, domains=("code",))


def test_a_uniform_guess_costs_log_v() -> None:
    """Equal logits everywhere: ln V nats per token, and log2 V bits over the mean bytes of the scored targets."""
    network, batch = model(), sequences()
    torch.nn.init.zeros_(network.head)
    metrics = evaluate(network, batch, batch_size=2, token_bytes=np.full(VOCAB, 3, dtype=np.int32))
    assert metrics["val/loss"] == pytest.approx(math.log(VOCAB), rel=FLOAT32_MODULE)
    assert metrics["val/bpb"] == pytest.approx(math.log2(VOCAB) / 3, rel=FLOAT32_MODULE)


@pytest.mark.parametrize("batch_size", [3, 7])
def test_routing_is_counted_over_the_whole_set(batch_size: int) -> None:
    """Pairs and devices of every token of every sequence, averaged over the two layers; nothing is dropped."""
    network, batch = model(), sequences()
    violations, devices = [], []
    with torch.no_grad():
        routings = network.eval()(batch.inputs).routings
    network.train()
    for routing in routings:
        chosen = routing.experts.flatten(0, 1).tolist()
        load = [sum(expert in token for token in chosen) for expert in range(6)]
        violations.append(max(load) / (sum(load) / 6) - 1)
        devices.append(sum(len({expert // 2 for expert in token}) for token in chosen) / len(chosen))
    metrics = evaluate(network, batch, batch_size=batch_size, token_bytes=None)
    assert metrics["val/routing/max_violation"] == pytest.approx(sum(violations) / 2, rel=1e-12)
    assert metrics["val/routing/devices_per_token"] == pytest.approx(sum(devices) / 2, rel=1e-12)
    assert metrics["val/routing/drop_rate"] == 0
    assert "val/bpb" not in metrics  # no text


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_weights_stay(training: bool) -> None:
    network = model().train(training)
    before = references.remembered(network)
    evaluate(network, sequences(), batch_size=4, token_bytes=None)
    assert all(module.training is training for module in network.modules())
    assert references.remembered(network) == before
    assert all(weight.grad is None for weight in network.parameters())


def test_a_dense_model_routes_nothing() -> None:
    metrics = evaluate(model(SwiGLU.Config(width=8)), sequences(), batch_size=4, token_bytes=None)
    assert metrics.keys() == {"val/loss", "val/accuracy"}


def test_evaluation_at_capacity_drops_as_training_does() -> None:
    """Against the model's own training mode, which drops; nobody is exempt, and the model itself is left as it was."""
    dropping, batch = model(), sequences()
    loss = loss_at_capacity(dropping.eval(), batch, batch_size=3)
    assert not dropping.training
    nats, scored = 0.0, 0
    dropping.train()
    for first in range(0, SEQUENCES, 3):
        targets = batch.targets[first : first + 3]
        logits = dropping(batch.inputs[first : first + 3]).logits.detach().double().log_softmax(-1)
        for b, t in (targets != NOT_SCORED).nonzero().tolist():
            nats -= float(logits[b, t, targets[b, t]])
            scored += 1
    assert loss == pytest.approx(nats / scored, rel=FLOAT32_MODULE)
    plain = evaluate(dropping, batch, batch_size=3, token_bytes=None)["val/loss"]
    assert abs(loss - plain) > 0.01


def test_a_model_that_knows_no_dropping_is_given_capacity_1() -> None:
    without = MoE.Config(num_experts=6, top_k=2, expert_dim=4, num_devices=3)
    with_it = MoE.Config(num_experts=6, top_k=2, expert_dim=4, num_devices=3, dropping=Dropping.Config())
    losses = [loss_at_capacity(model(ffn), sequences(), batch_size=3) for ffn in (without, with_it)]
    assert losses[0] == losses[1]


def test_whole_answers_are_right_if_all_their_tokens_are() -> None:
    """Of answers of one, two and three tokens, one token of the last is wrong."""
    dense, inputs = model(SwiGLU.Config(width=8)), sequences().inputs[:3]
    with torch.no_grad():
        targets = dense(inputs).logits.argmax(-1)
    targets[2, -2] = (targets[2, -2] + 1) % VOCAB
    for row, scored in enumerate((1, 2, 3)):
        targets[row, : LENGTH - scored] = NOT_SCORED
    batch = Batch(inputs, targets, None)
    shares = {
        whole: evaluate(dense, batch, batch_size=2, token_bytes=None, whole_answers=whole)["val/accuracy"]
        for whole in (False, True)
    }
    assert shares == {False: pytest.approx(5 / 6), True: pytest.approx(2 / 3)}
