"""Precision choices: products in bfloat16 where that is asked for, everything else in float32."""

from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dsv2
from dsv2.data.source import Batch
from dsv2.inference.deployed import Deployed
from dsv2.inference.precision import OPS
from dsv2.kernels import fp8
from dsv2.models.ops import PLAIN
from dsv2.training.module import Module
from dsv2.training.run import Training

FINE = 1 + 2**-9  # bfloat16 has 8 bits of mantissa: rounded to 1


def test_there_is_a_choice_for_every_name_that_the_config_takes() -> None:
    trained, deployed = (get_args(get_type_hints(config)["precision"]) for config in (Training.Config, Deployed.Config))
    assert set(OPS) == set(deployed)
    assert set(deployed) - set(trained) == {"fp8"}
    assert OPS["fp32"] is PLAIN


def integers(*shape: int, seed: int) -> Tensor:
    """Small whole numbers, whose products and short sums bfloat16 holds exactly."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_bfloat16_rounds_both_factors_and_the_product_and_nothing_more() -> None:
    low = OPS["bf16"].linear
    x, w = integers(5, 16, seed=0), integers(8, 16, seed=1)
    assert low(x, w).dtype == torch.bfloat16
    assert torch.equal(low(x, w).float(), F.linear(x, w))
    assert torch.equal(low(x * FINE, w), low(x, w))
    assert torch.equal(low(x, w * FINE), low(x, w))
    assert not torch.equal(PLAIN.linear(x * FINE, w), PLAIN.linear(x, w))


def test_grouped_products_are_rounded_alike() -> None:
    low = OPS["bf16"].grouped
    rows, w, counts = integers(6, 16, seed=2), integers(3, 16, 8, seed=3), torch.tensor([4, 0, 2])
    expected = torch.cat([rows[:4] @ w[0], rows[4:] @ w[2]])
    assert low(rows, counts, w).dtype == torch.bfloat16
    assert torch.equal(low(rows, counts, w).float(), expected)
    assert torch.equal(low(rows * FINE, counts, w), low(rows, counts, w))
    assert torch.equal(low(rows, counts, w * FINE), low(rows, counts, w))


def test_the_heads_product_is_rounded_and_its_loss_is_not() -> None:
    low = OPS["bf16"]
    x, w, targets = integers(5, 16, seed=0), FINE * integers(8, 16, seed=1), torch.arange(5)
    assert low.head is not None
    loss = low.head(x, w, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(low.linear(x, w).float(), targets))


def test_fp8_rounds_weights_by_blocks_and_activations_by_rows() -> None:
    """What it stores is what it multiplies by; the result is bfloat16, as of the tensor cores."""
    x, w = torch.randn(5, 16), torch.randn(8, 16)
    assert torch.equal(OPS["fp8"].linear(x, w), fp8.linear(x, w))
    counts, matrices = torch.tensor([4, 0, 1]), torch.randn(3, 16, 8)
    assert torch.equal(OPS["fp8"].grouped(x, counts, matrices), fp8.grouped(x, counts, matrices))
    assert OPS["fp8"].experts is OPS["fp8"].head is None


@pytest.mark.parametrize("product", ["linear", "grouped"])
def test_gradients_arrive_in_the_weights_own_precision(product: str) -> None:
    x, w = integers(6, 16, seed=4).requires_grad_(), integers(1, 16, 8, seed=5).requires_grad_()
    if product == "linear":
        OPS["bf16"].linear(x, w[0].t()).sum().backward()
    else:
        OPS["bf16"].grouped(x, torch.tensor([6]), w).sum().backward()
    for leaf, expected in ((x, w[0].sum(1).expand(6, 16)), (w, x.sum(0)[:, None].expand(16, 8)[None])):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("ffn", ["moe", "dense", "switch"])
def test_a_run_in_bfloat16_keeps_all_but_products_in_float32(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, ffn: str
) -> None:
    words = [*quick, f"model/ffn={ffn}"]
    module = Module(dsv2.load([*words, "trainer.precision=bf16"]))
    full = Module(dsv2.load(words))
    monkeypatch.setattr(Module, "global_step", 0)
    tokens = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(6))
    batch = Batch(tokens, tokens.roll(-1, 1), None)
    losses, routings = module.objective(batch)
    losses.total.backward()
    assert all(weight.dtype == torch.float32 for weight in module.model.parameters())
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in module.model.parameters())
    assert all(loss.dtype == torch.float32 for loss in losses)
    for routing in routings:
        assert routing.affinities.dtype == routing.gates.dtype == torch.float32
    assert bool(routings) == (ffn != "dense")
    expected = full.objective(batch)[0]
    assert losses.ce.item() != expected.ce.item()
    assert losses.ce.item() == pytest.approx(expected.ce.item(), rel=0.01)
