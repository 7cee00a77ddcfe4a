"""The training step: who is exempt from dropping, what it hands to the callbacks, when the bias of experts moves."""

from typing import Any

import lightning as L
import pytest
import torch

import dsv2
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.moe.router import Routing
from dsv2.study.plan import Plan
from dsv2.training import module as module_of_training
from dsv2.training.module import Module
from tests import references
from tests.references import balancing


class At(Module):
    """A module that believes to be at some step."""

    step = 0

    @property
    def global_step(self) -> int:
        return self.step


def module(quick: list[str], ratio: float = 0.5, *more: str, step: int = 0) -> At:
    found = At(dsv2.load([*quick, "model/ffn/dropping=device", f"model.ffn.dropping.exempt_ratio={ratio}", *more]))
    found.step = step
    return found


def test_exempt_sequences_depend_on_seed_and_step_alone(quick: list[str]) -> None:
    masks = {(seed, step): module(quick, 0.5, f"seed={seed}", step=step) for seed in (0, 1) for step in (0, 1, 2)}
    drawn = {key: tuple(found._exempt(64).tolist()) for key, found in masks.items()}
    assert len(set(drawn.values())) == 6
    torch.manual_seed(123)  # whatever the global generator did meanwhile
    before = torch.get_rng_state()
    assert {key: tuple(found._exempt(64).tolist()) for key, found in masks.items()} == drawn
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.1, 820, 1180), (1.0, 10_000, 10_000)])
def test_the_exempt_share(quick: list[str], ratio: float, low: int, high: int) -> None:
    """Of 10,000 sequences; the count at 10% has a standard deviation of 30, and lies within 6 of them."""
    assert low <= int(module(quick, ratio)._exempt(10_000).sum()) <= high


def test_the_share_of_steps_without_an_exempt_sequence(quick: list[str]) -> None:
    """0.9^8 = 43%, as the study says; of 2,000 steps, within four deviations."""
    found, without = module(quick, 0.1), 0
    for found.step in range(2000):
        without += not found._exempt(8).any()
    share = without / 2000
    assert share == pytest.approx(0.9**8, abs=0.044)
    assert f"{0.9**8:.0%} of the steps of 8 sequences have none (0.9^8)" in Plan("token_dropping", "tiny").file.shows_at


def test_nobody_is_exempt_where_nothing_is_dropped(quick: list[str]) -> None:
    assert Module(dsv2.load(quick))._exempt(4) is None
    assert Module(dsv2.load([*quick, "model/ffn=dense"]))._exempt(4) is None


def test_a_step_spares_the_exempt_and_hands_on_what_is_detached(quick: list[str]) -> None:
    """All tokens alike, so that a device is over its budget in every sequence that is not exempt."""
    found = module(quick, 0.5, "loss.expert=0.3", step=3)
    references.randomise(found.model, seed=0)
    found.train()
    batch = Batch(torch.full((8, 32), 7), torch.full((8, 32), 7), None)
    outputs = found.training_step(batch, 0)
    exempt = found._exempt(8)
    assert 0 < int(exempt.sum()) < 8
    losses, routings, tokens, measures = outputs["step"]
    assert (tokens, measures) == (256, {})
    assert len(routings) == 1
    dropped = routings[0].dropped
    assert not dropped[exempt].any()
    assert dropped[~exempt].any()
    assert outputs["loss"].requires_grad
    assert not any(value.requires_grad for value in (*losses, routings[0].affinities, routings[0].gates))
    assert float(losses.expert) == pytest.approx(
        0.3 * float(references.expert_loss(routings[0].affinities, routings[0].experts)), rel=1e-5
    )


# ---- several documents in a sequence ---------------------------------------------------------------------------------


def packed_batch() -> Batch:
    """Documents of 5, 3 and 6 tokens in sequences of 9, of which some tokens are scored."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 300, (2, 9), generator=draw)
    targets = torch.full((2, 9), NOT_SCORED)
    targets[0, [2, 3, 6]] = inputs[0, [3, 4, 7]]
    targets[1, [1, 2, 3, 4]] = inputs[1, [2, 3, 4, 5]]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, -1], [0, 1, 2, 3, 4, 5, -1, -1, -1]])
    return Batch(inputs, targets, None, positions)


def test_the_loss_of_packed_documents_is_the_mean_over_their_scored_tokens(quick: list[str]) -> None:
    batch = packed_batch()
    found = Module(dsv2.load([*quick, "loss.expert=0.3", "loss.device=0.2", "loss.communication=0.1"]))
    references.randomise(found.model, seed=0)
    losses, _ = found.objective(batch)
    nats, balance = [], []
    for row, spans in enumerate(((slice(0, 5), slice(5, 8)), (slice(0, 6),))):
        parts = []
        for span in spans:
            output = found.model(batch.inputs[row : row + 1, span])
            scored = batch.targets[row, span] != NOT_SCORED
            nats += token_nats(output.logits[0][scored], batch.targets[row, span][scored]).tolist()
            parts.append(output.routings[0])
        affinities, experts = (
            torch.cat([getattr(part, name) for part in parts], 1) for name in ("affinities", "experts")
        )
        whole = found.moe.balance_losses(Routing(affinities, experts, affinities.gather(-1, experts)))
        balance.append([0.3 * whole.expert, 0.2 * whole.device, 0.1 * whole.communication])
    assert losses.ce.item() == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    for got, one, other in zip(losses[2:5], *balance, strict=True):
        assert got.item() == pytest.approx((one.item() + other.item()) / 2, rel=1e-5)
    assert losses.total.item() == pytest.approx(losses.ce.item() + sum(losses[2:]).item(), rel=1e-6)


def test_padding_is_in_no_count(quick: list[str]) -> None:
    found = Module(dsv2.load(quick))
    step = found.training_step(packed_batch(), 0)["step"]
    assert step.tokens == 18, "what the model read"
    assert step.routings[0].experts.shape == (1, 14, 2)
    other = packed_batch()
    other.inputs[other.positions < 0] = 7
    again = found.training_step(other, 0)["step"]
    assert torch.equal(again.routings[0].experts, step.routings[0].experts)
    assert again.losses.total == step.losses.total


def test_shares_of_processes_count_by_their_scored_tokens(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with a sequence each, of 3 and 4 scored tokens: the mean of their losses is that over 7."""
    batch, found = packed_batch(), Module(dsv2.load(quick))
    whole = found.objective(batch)[0].ce.item()
    monkeypatch.setattr(module_of_training, "num_processes", lambda: 2)
    monkeypatch.setattr(module_of_training, "mean", lambda share: torch.tensor(3.5))
    shares = [found.objective(batch.rows(row, 1))[0].ce.item() for row in (0, 1)]
    assert sum(shares) / 2 == pytest.approx(whole, rel=1e-6)


def test_the_weights_come_from_the_runs_seed(quick: list[str]) -> None:
    first, again, other = (Module(dsv2.load([*quick, f"seed={seed}"])).model.embedding for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- the bias of loss-free layers ------------------------------------------------------------------------------------

LOSS_FREE = ["model/ffn=loss_free", "model.num_layers=3"]  # of which the first is dense


def chosen(*loads: int) -> Routing:
    """A routing of one sequence in which so many tokens chose each expert."""
    experts = torch.arange(len(loads)).repeat_interleave(torch.tensor(loads))[None, :, None]
    return Routing(torch.full((1, experts.shape[1], len(loads)), 0.5), experts, torch.full(experts.shape, 0.5))


class Calling:
    """An optimiser that only calls its closure."""

    def step(self, closure: Any) -> None:
        closure()


def test_the_bias_follows_the_load_of_a_whole_step(quick: list[str]) -> None:
    """Loads [4, 0] and [1, 3] of two micro-batches: one update, of the layer that they belong to."""
    sizes = ["model.shape.num_experts=2", "model.shape.top_k=1", "model.shape.num_devices=1"]
    found = Module(dsv2.load([*quick, *LOSS_FREE, *sizes]))
    biases = [layer.ffn.bias for layer in found.model.layers[1:]]

    def micro_batch(*routings: Routing) -> None:
        found.routed = routings
        found.on_after_backward()

    micro_batch(chosen(4, 0), chosen(0, 4))
    assert not any(bias.any() for bias in biases), "before the step"
    found.optimizer_step(0, 1, Calling(), lambda: micro_batch(chosen(1, 3), chosen(2, 2)))  # type: ignore[arg-type]
    torch.testing.assert_close(biases[0], torch.tensor([-0.001, 0.001]))
    torch.testing.assert_close(biases[1], torch.tensor([0.001, -0.001]))
    found.optimizer_step(0, 2, Calling(), lambda: None)  # type: ignore[arg-type]
    torch.testing.assert_close(biases[0], torch.tensor([-0.001, 0.001]), msg="a skipped step moved it")
    found.optimizer_step(0, 3, Calling(), lambda: micro_batch(chosen(0, 4), chosen(0, 4)))  # type: ignore[arg-type]
    torch.testing.assert_close(biases[0], torch.zeros(2), msg="the load of an earlier step is still counted")


class Noting(Module):
    """Notes what every micro-batch chose, skips some, evaluates in between, and knows the bias after every step."""

    skipped = (2, 6, 7)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.experts: list[list[torch.Tensor]] = []
        self.biases: list[list[torch.Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        self.model.eval()(batch.inputs)
        self.model.train()
        outputs = super().training_step(batch, batch_idx)
        if batch_idx in self.skipped:
            return None
        self.experts.append([routing.experts for routing in outputs["step"].routings])
        return outputs

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.biases.append([layer.ffn.bias.clone() for layer in self.model.layers[1:]])
        self.experts.append([])  # the end of the step


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_biases_are_those_of_a_loop(quick: list[str], accumulated: int, recomputed: int) -> None:
    """Eight micro-batches in steps of one, two and four, of which some are skipped."""
    words = [*quick, *LOSS_FREE, f"trainer.recompute_layers={recomputed}"]
    found = Noting(dsv2.load(words))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 300, (8, 2, 9), generator=generator)
    batches = [Batch(part[:, :-1], part[:, 1:], None) for part in tokens]
    settings: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulated,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(found, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert len(found.biases) == 8 // accumulated
    expected = [[0.0] * 8, [0.0] * 8]
    step: list[list[torch.Tensor]] = []
    ended = iter(found.biases)
    for experts in found.experts:
        if experts:
            step.append(experts)
            continue
        if step:
            expected = [
                balancing.moved(bias, torch.cat([micro[layer].flatten() for micro in step]), 0.001)
                for layer, bias in enumerate(expected)
            ]
        for bias, mine in zip(next(ended), expected, strict=True):
            assert bias.tolist() == pytest.approx(mine, abs=1e-9)
        step = []
    assert any(found.biases[-1][0])
    assert any(found.biases[-1][1])


def test_only_loss_free_layers_are_counted(quick: list[str]) -> None:
    found = Module(dsv2.load(quick))
    found.routed = (chosen(4, 0),)
    found.on_after_backward()
    assert not found.loads


# ---- the z-loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recomputed", [0, 2])
def test_the_z_loss_is_of_the_routers_logits(quick: list[str], recomputed: int) -> None:
    """Value and gradient of the router, by the loop, with its inputs taken from where they pass."""
    words = [*quick, "loss.expert=0", "loss.device=0", "loss.communication=0", f"trainer.recompute_layers={recomputed}"]
    plain, with_z = (Module(dsv2.load([*words, f"loss.z={z}"])) for z in (0.0, 0.1))
    batch = Batch(torch.arange(64).view(2, 32), torch.arange(64).view(2, 32), None)
    seen: list[torch.Tensor] = []
    router = with_z.model.layers[1].ffn.router
    with_z.model.layers[1].ffn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for found in (plain, with_z):
        references.randomise(found.model, seed=0)
    (before, _), (after, _) = plain.objective(batch), with_z.objective(batch)
    u = seen[0].detach().double()
    weight = router.w.detach().double().requires_grad_()
    expected = 0.1 * balancing.z_loss(u @ weight.T)
    assert after.z.item() == pytest.approx(expected.item(), rel=1e-5)
    assert before.z.item() == 0
    assert after.total.item() == pytest.approx((before.total + expected).item(), rel=1e-5)
    before.total.backward()
    after.total.backward()
    (gradient,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(
        router.w.grad - plain.model.layers[1].ffn.router.w.grad, gradient.float(), rtol=1e-3, atol=1e-6
    )


def test_the_z_loss_is_linear_in_its_coefficient(quick: list[str]) -> None:
    batch = Batch(torch.arange(64).view(2, 32), torch.arange(64).view(2, 32), None)
    once, twice = (Module(dsv2.load([*quick, f"loss.z={z}"])).objective(batch)[0].z.item() for z in (0.01, 0.02))
    assert twice == pytest.approx(2 * once, rel=1e-6)
    assert once > 0


@pytest.mark.parametrize("ffn", ["dense", "hash", "sigmoid", "v3"])
def test_without_a_softmax_router_there_is_no_z_loss(quick: list[str], ffn: str) -> None:
    batch = Batch(torch.arange(64).view(2, 32), torch.arange(64).view(2, 32), None)
    losses, _ = Module(dsv2.load([*quick, f"model/ffn={ffn}", "loss=z"])).objective(batch)
    assert losses.z.item() == 0
