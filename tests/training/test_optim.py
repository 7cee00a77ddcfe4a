"""AdamW, its decay groups and the clipping of gradients, against the update written out for single numbers."""

import math

import pytest
import torch
from torch import nn

import dsv2
from dsv2.training.module import Module
from dsv2.training.optim import AdamW
from tests import references
from tests.references.tolerances import FLOAT32, close


class Two(nn.Module):
    """A matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.empty(2, 3)), nn.Parameter(torch.empty(3))
        references.randomise(self, seed=0)


def adamw(weight: float, gradients: list[float], decay: float, config: AdamW.Config) -> float:
    """The weight after one step a gradient: decoupled decay, then the bias-corrected moments (Loshchilov & Hutter)."""
    (beta_1, beta_2), m, v = config.betas, 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        weight -= config.lr * decay * weight
        m = beta_1 * m + (1 - beta_1) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        weight -= config.lr * m / (1 - beta_1**step) / (math.sqrt(v / (1 - beta_2**step)) + config.eps)
    return weight


@pytest.mark.parametrize(
    "config",
    [
        AdamW.Config(lr=0.02),
        AdamW.Config(lr=0.1, betas=(0.5, 0.7), eps=0.3, weight_decay=2.0),
        AdamW.Config(lr=0.1, betas=(0.0, 0.99), weight_decay=0.0),
    ],
    ids=["report", "other numbers", "no decay"],
)
def test_steps_are_adamws_and_only_matrices_decay(config: AdamW.Config) -> None:
    model = Two()
    optimizer = config.build(model)
    for name, decay in (("matrix", config.weight_decay), ("vector", 0.0)):
        assert name in dict(model.named_parameters())
        gradients = references.random(3, *getattr(model, name).shape, seed=1).detach()
        gradients[2] = 0.0  # a step without gradient still decays
        start = getattr(model, name).detach().clone()
        for gradient in gradients:
            optimizer.zero_grad()
            getattr(model, name).grad = gradient.float()
            optimizer.step()
        expected = [
            adamw(float(weight), [float(g) for g in of], decay, config)
            for weight, of in zip(start.flatten(), gradients.flatten(1).T, strict=True)
        ]
        close(getattr(model, name), torch.tensor(expected).view_as(start), FLOAT32, name)


def test_the_reports_numbers_are_the_defaults() -> None:
    """Section 3.1.2: AdamW (0.9, 0.95), weight decay 0.1, clip 1.0, 2K warm-up steps, x 0.316 at 60% and 90%."""
    config = AdamW.Config(lr=2.4e-4)
    assert (config.betas, config.weight_decay, config.clip_norm) == ((0.9, 0.95), 0.1, 1.0)
    schedule = config.schedule
    assert (schedule.warmup_steps, schedule.decay_at, schedule.decay) == (2000, (0.6, 0.9), 0.316)


def test_of_a_model_everything_but_the_norms_decays(quick: list[str]) -> None:
    run = dsv2.load([*quick, "model.shape.q_latent_dim=12"])
    model = run.model.build()
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed, kept = ([names[id(weight)] for weight in g["params"]] for g in run.optim.build(model).param_groups)
    assert sorted(decayed + kept) == sorted(names.values())
    assert all("norm" in name for name in kept)
    assert not any("norm" in name for name in decayed)


@pytest.mark.parametrize(("clip_norm", "factor"), [(2.5, 0.5), (1.0, 0.2), (5.5, 1.0)])
def test_the_whole_gradient_is_clipped(quick: list[str], clip_norm: float, factor: float) -> None:
    """A gradient of norm 5 over two weights; the norm that is logged is the one before."""
    module = Module(dsv2.load([*quick, f"optim.clip_norm={clip_norm}"]))
    first, last = module.model.embedding, module.model.norm.w
    first.grad, last.grad = torch.zeros_like(first), torch.zeros_like(last)
    first.grad[0, 0], last.grad[1] = 3.0, -4.0
    module.configure_gradient_clipping(None)
    assert float(module.grad_norm) == pytest.approx(5.0, rel=FLOAT32)
    assert float(first.grad[0, 0]) == pytest.approx(3.0 * factor, rel=FLOAT32)
    assert float(last.grad[1]) == pytest.approx(-4.0 * factor, rel=FLOAT32)


def test_the_schedule_moves_a_step_at_a_time(quick: list[str]) -> None:
    """Of 12 steps 4 warm up and those from 50% of the tokens on have 0.316 of the rate."""
    module = Module(dsv2.load([*quick, "optim.schedule.warmup_steps=4", "optim.schedule.decay_at=[0.5]"]))
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]
    assert scheduler["interval"] == "step"
    rates = []
    for _ in range(12):
        rates.append({group["lr"] / module.config.optim.lr for group in optimizer.param_groups})
        optimizer.step()
        scheduler["scheduler"].step()
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, *[0.316] * 6]
    for found, factor in zip(rates, expected, strict=True):
        assert max(found) == min(found) == pytest.approx(factor, rel=1e-12)
