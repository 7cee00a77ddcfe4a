"""Log-likelihoods of continuations, against a loop over tokens of one sequence at a time."""

import random

import pytest
import torch

from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.models.attention import MLA
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.tolerances import FLOAT32_MODULE

VOCAB = 13


@pytest.fixture
def model() -> Transformer:
    config = Transformer.Config(
        vocab_size=VOCAB,
        dim=8,
        num_layers=2,
        attention=MLA.Config(num_heads=2, head_dim=4, rope_dim=2, v_dim=4, kv_latent_dim=4),
        ffn=MoE.Config(num_experts=6, top_k=2, expert_dim=4, num_devices=3),
    )
    return references.randomise(config.build(), seed=0).train()


def asked() -> list[Question]:
    draw = random.Random(1)
    sizes = [(1, 1), (5, 3), (2, 7), (5, 3), (9, 1), (1, 4), (3, 3)]
    return [Question(draw.choices(range(VOCAB), k=n), draw.choices(range(VOCAB), k=m)) for n, m in sizes]


@pytest.mark.parametrize("batch_tokens", [1, 16, 1000])
def test_likelihoods_are_those_of_a_loop(model: Transformer, batch_tokens: int) -> None:
    scored = likelihoods(model, asked(), batch_tokens=batch_tokens)
    model.eval()
    for (context, continuation), likelihood in zip(asked(), scored, strict=True):
        read, nats, hits = list(context), [], []
        for token in continuation:
            with torch.no_grad():
                logits = model(torch.tensor([read])).logits[0, -1].double()
            nats.append((logits[token] - logits.exp().sum().log()).item())
            hits.append(max(range(VOCAB), key=lambda other: logits[other]) == token)
            read.append(token)
        assert likelihood.nats == pytest.approx(nats, rel=FLOAT32_MODULE, abs=FLOAT32_MODULE)
        assert likelihood.hits == hits
        assert likelihood.total == pytest.approx(sum(nats), rel=FLOAT32_MODULE)


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_random_numbers_stay(model: Transformer, training: bool) -> None:
    model.train(training)
    state = torch.get_rng_state()
    likelihoods(model, asked(), batch_tokens=16)
    assert all(module.training is training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_the_mode_comes_back_after_an_error(model: Transformer) -> None:
    with pytest.raises(ValueError, match="those of the vocabulary"):
        likelihoods(model, [Question([VOCAB], [0])], batch_tokens=16)
    assert model.training


@pytest.mark.parametrize("question", [Question([], [1]), Question([1], [])])
def test_nothing_to_read_or_to_score_is_an_error(model: Transformer, question: Question) -> None:
    with pytest.raises(ValueError, match="question 1: context and continuation need at least one"):
        likelihoods(model, [Question([1], [1]), question], batch_tokens=16)
