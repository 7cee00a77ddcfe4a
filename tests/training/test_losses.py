"""What is minimised: cross-entropy and the alpha-weighted balance losses of all layers, against loops."""

import pytest
import torch

from dsv2 import Routing
from dsv2.config import ConfigError
from dsv2.data.source import NOT_SCORED
from dsv2.kernels.cross_entropy import mean_nats
from dsv2.models.moe import GShard, Hash, MoE, Switch
from dsv2.training.losses import BalanceLoss, training_loss
from tests import references
from tests.references import balancing
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients

# 3 devices of 2 experts, M = 2 where min(D, K) is 3: each of D, M and K matters.
MOE = MoE.Config(num_experts=6, top_k=3, expert_dim=1, num_devices=3, max_devices=2)
LAYERS = 2


def predictions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, 5, 7) and targets of which 4 of 10 are not scored, unevenly over the two sequences."""
    targets = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(seed))
    targets[0, 1:4] = NOT_SCORED
    targets[1, 4] = NOT_SCORED
    return references.random(2, 5, 7, seed=seed), targets


def scored_only(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the scored tokens, as one row of them."""
    scored = targets != NOT_SCORED
    return references.cross_entropy(logits[scored][None], targets[scored][None])


def layer(seed: int) -> Routing:
    """A skewed routing of 2 sequences of 5 tokens."""
    skew = torch.tensor([1.0, 0.8, 0.2, 0.0, -0.4, -1.0])
    s = (references.random(2, 5, 6, seed=seed).detach() + skew).softmax(-1).float().requires_grad_()
    experts, gates = references.route(s.detach(), 3, 3, 2)
    return Routing(affinities=s, experts=experts, gates=gates)


def balance(s: list[torch.Tensor], routings: list[Routing]) -> list[torch.Tensor]:
    """The three losses before alpha, each summed over the layers."""
    pairs = [(mine, routing.experts) for mine, routing in zip(s, routings, strict=True)]
    return [
        sum(references.expert_loss(*pair) for pair in pairs),
        sum(references.device_loss(*pair, 3) for pair in pairs),
        sum(references.communication_loss(*pair, 3, 2) for pair in pairs),
    ]


def test_cross_entropy_is_the_mean_over_the_scored_tokens() -> None:
    logits, targets = predictions()
    leaves = {"logits": logits}
    own = references.twin(leaves)
    loss = mean_nats(logits, targets)
    same_values_and_gradients(loss, scored_only(own["logits"], targets), leaves, own, FLOAT32)


def test_cross_entropy_of_bfloat16_logits_is_in_float32() -> None:
    logits, targets = predictions(1)
    low = logits.detach().bfloat16()
    loss = mean_nats(low, targets)
    assert loss.dtype == torch.float32
    close(loss, scored_only(low.double(), targets), FLOAT32)


@pytest.mark.parametrize(
    "alphas", [(0.3, 0.05, 0.2), (0.3, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.3)], ids=["all", "1", "2", "3"]
)
def test_balance_is_added_with_its_alphas_over_all_layers(alphas: tuple[float, float, float]) -> None:
    """Values of every part, and gradients of the total with respect to the logits and to each layer's affinities."""
    logits, targets = predictions(2)
    routings = [layer(10 + i) for i in range(LAYERS)]
    leaves = {"logits": logits} | {f"s{i}": routing.affinities for i, routing in enumerate(routings)}
    own = references.twin(leaves)
    coefficients = BalanceLoss.Config(**dict(zip(("expert", "device", "communication"), alphas, strict=True)))
    losses = training_loss(mean_nats(logits, targets), routings, MOE, coefficients)
    parts = balance([own[f"s{i}"] for i in range(LAYERS)], routings)
    weighted = [alpha * part for alpha, part in zip(alphas, parts, strict=True)]
    ce = scored_only(own["logits"], targets)
    close(losses.ce, ce, FLOAT32, "ce")
    for name, part in zip(("expert", "device", "communication"), weighted, strict=True):
        close(getattr(losses, name), torch.as_tensor(part), FLOAT32, name)
    same_values_and_gradients(losses.total, ce + sum(weighted), leaves, own, FLOAT32)


@pytest.mark.parametrize("kind", [GShard, Switch, Hash])
def test_a_type_has_its_own_losses(kind: type) -> None:
    """GShard and Switch one, which alpha_1 weighs, summed over layers; a hash layer none, whatever the alphas."""
    logits, targets = predictions(4)
    moe = kind.Config(num_experts=6, expert_dim=1)
    routings = [layer(30 + i) for i in range(LAYERS)]
    routings = [r._replace(experts=r.experts[..., : moe.top_k], gates=r.gates[..., : moe.top_k]) for r in routings]
    leaves = {"logits": logits} | {f"s{i}": routing.affinities for i, routing in enumerate(routings)}
    own = references.twin(leaves)
    alphas = BalanceLoss.Config(expert=0.3, device=0.5, communication=0.7)
    losses = training_loss(mean_nats(logits, targets), routings, moe, alphas)
    expected = sum(first_choice_loss(own[f"s{i}"], r.experts) for i, r in enumerate(routings)) * (kind is not Hash)
    close(losses.expert, 0.3 * expected, FLOAT32, "expert")
    assert not any((losses.device, losses.communication))
    ce = scored_only(own["logits"], targets)
    same_values_and_gradients(losses.total, ce + 0.3 * expected, leaves, own, FLOAT32)


def first_choice_loss(s: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """N sum_i f_i P_i over all tokens of the batch, f of what stands first in experts (B, T, K)."""
    first, rows = experts[..., 0].flatten().tolist(), s.flatten(0, 1)
    P = [sum(row[i] for row in rows) / len(rows) for i in range(s.shape[-1])]
    return len(P) * sum(first.count(i) / len(first) * P_i for i, P_i in enumerate(P))


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "alphas 0"])
def test_without_balance_the_total_is_the_cross_entropy(moe: MoE.Config | None) -> None:
    logits, targets = predictions(3)
    alphas = BalanceLoss.Config(expert=0.3) if moe is None else BalanceLoss.Config()
    losses = training_loss(mean_nats(logits, targets), [] if moe is None else [layer(20)], moe, alphas)
    assert losses.total == losses.ce
    assert not any((losses.expert, losses.device, losses.communication, losses.z))


def test_the_z_loss_is_summed_over_layers() -> None:
    logits, targets = predictions(5)
    routers = [references.random(2, 5, 6, seed=40 + i) for i in range(LAYERS)]
    leaves = {"logits": logits} | {f"x{i}": x for i, x in enumerate(routers)}
    own = references.twin(leaves)
    routings = [layer(50 + i) for i in range(LAYERS)]
    alphas = BalanceLoss.Config(expert=0.3, z=0.01)
    losses = training_loss(mean_nats(logits, targets), routings, MOE, alphas, routers)
    z = 0.01 * sum(balancing.z_loss(own[f"x{i}"]) for i in range(LAYERS))
    close(losses.z, z, FLOAT32, "z")
    expected = scored_only(own["logits"], targets) + losses.expert.detach() + z
    same_values_and_gradients(losses.total, expected, leaves, own, FLOAT32)


def test_a_coefficient_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"^z=-0\.1 is not valid: 0 or more, and finite"):
        BalanceLoss.Config(z=-0.1)
