"""GShard, Switch and hash layers against loops written from their papers: choices, gates, room, losses, gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2 import Routing
from dsv2.inference.cache import allocate_model
from dsv2.models.attention import GQA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import GShard, Hash, MoE, Switch
from dsv2.models.moe.capacity import over_capacity
from dsv2.models.moe.hints import Hints
from dsv2.models.transformer import Transformer
from tests import references
from tests.references import baselines as references_baselines
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE, close, same_values_and_gradients

SHAPE = (2, 7, 5)
TOKENS = torch.tensor([[3, 0, 3, 9, 1, 4, 4], [2, 9, 9, 5, 3, 0, 6]])
SIZES = {"num_experts": 4, "expert_dim": 3, "num_shared": 1}
KINDS = {"gshard": GShard, "switch": Switch, "hash": Hash}
every = pytest.mark.parametrize("kind", KINDS)
SEED = 11


def drawn(*shape: int, seed: int = SEED) -> Tensor:
    """What a layer with this seed draws."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def routed(
    kind: str, u: Tensor, w: dict[str, Tensor], sizes: dict, training: bool, seed: int = SEED
) -> references_baselines.Routed:
    """The loops' routing of u, from the layer's weights."""
    factor = sizes.get("capacity_factor", 1.25 if kind == "switch" else 1.0)
    if kind == "gshard":
        found = references_baselines.gshard(
            references.affinities(u, w["router.w"]), factor, drawn(*u.shape[:2], seed=seed)
        )
    elif kind == "switch":
        jitter = sizes.get("jitter", 1e-2) if training else 0.0
        seen = references_baselines.jittered(u, drawn(*u.shape, seed=seed), jitter)
        found = references_baselines.switch(references.affinities(seen, w["router.w"]), factor)
    else:
        hashed = [[references_baselines.random_hash(int(t), 0, sizes["num_experts"]) for t in row] for row in TOKENS]
        experts = torch.tensor(hashed)[..., None]
        ones, none = torch.ones_like(experts).double(), torch.zeros_like(experts, dtype=torch.bool)
        found = references_baselines.Routed(experts, ones, none, torch.zeros((), dtype=torch.float64))
    return found if training else found._replace(dropped=torch.zeros_like(found.dropped))


CASES = [
    *(("gshard", {"capacity_factor": factor}) for factor in (0.3, 0.6, 1.0, 2.0)),
    *(("switch", {"capacity_factor": factor, "jitter": 0.0}) for factor in (0.3, 1.0, 1.25)),
    ("switch", {"jitter": 0.9}),
    ("hash", {}),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("kind", "more"), CASES)
def test_layer(kind: str, more: dict, training: bool) -> None:
    """Choices, gates and what is dropped; then the output and every gradient, shared expert included."""
    sizes = SIZES | more
    layer = references.randomise(KINDS[kind].Config(**sizes).build(SHAPE[-1]).double(), seed=1).train(training)
    leaves = {"u": references.random(*SHAPE, seed=2), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(leaves["u"], Hints(tokens=TOKENS, seed=SEED))
    expected = routed(kind, own["u"], own, sizes, training)
    assert torch.equal(routing.experts, expected.experts)
    close(routing.gates, expected.gates, FLOAT32, "gates")
    assert routing.affinities.dtype == routing.gates.dtype == torch.float32
    if kind == "hash" or not training:
        assert routing.dropped is None
    else:
        assert torch.equal(routing.dropped, expected.dropped)
        assert bool(expected.dropped.any()) or more == {"jitter": 0.9}
    by_hand = references_baselines.moe(
        own["u"], own, experts=expected.experts, gates=expected.gates, dropped=expected.dropped, expert_dim=3
    )
    same_values_and_gradients(y, by_hand, leaves, own, FLOAT32)


@pytest.mark.parametrize("kind", ["gshard", "switch"])
def test_the_auxiliary_loss(kind: str) -> None:
    """Value of the batch, per sequence where the mean is it, and gradients with respect to affinities and router."""
    config = KINDS[kind].Config(**SIZES, capacity_factor=0.5)  # what had no room counts all the same
    layer = references.randomise(config.build(SHAPE[-1]).double(), seed=3).train()
    leaves = {"u": references.random(*SHAPE, seed=4), "router.w": layer.router.w}
    own = references.twin(leaves)
    _, routing = layer(leaves["u"], Hints(seed=SEED))
    assert routing.dropped.any()
    losses = config.balance_losses(routing)
    assert losses.expert.shape == (2,)
    assert not losses.device.any()
    assert not losses.communication.any()
    expected = routed(kind, own["u"], own, SIZES | {"capacity_factor": 0.5}, training=True).loss
    same_values_and_gradients(losses.expert.mean(), expected, leaves, own, FLOAT32)


def test_auxiliary_losses_by_hand() -> None:
    """4 tokens, 2 experts: 3 prefer the first, P = (0.65, 0.35), so 2 (0.75 x 0.65 + 0.25 x 0.35) = 1.15."""
    s = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])
    experts = s.argsort(-1, descending=True)
    for config in (GShard.Config(num_experts=2, expert_dim=1), Switch.Config(num_experts=2, expert_dim=1)):
        routing = Routing(s, experts[..., : config.top_k], s.gather(-1, experts)[..., : config.top_k])
        assert config.balance_losses(routing).expert.tolist() == pytest.approx([1.15])
        even = Routing(
            torch.full_like(s, 0.5), torch.tensor([[[0, 1], [1, 0], [0, 1], [1, 0]]]), torch.full_like(s, 0.5)
        )
        assert config.balance_losses(even).expert.tolist() == pytest.approx([1.0])


def test_a_hash_layer_has_no_losses() -> None:
    config = Hash.Config(**SIZES)
    _, routing = config.build(5)(torch.zeros(SHAPE), Hints(tokens=TOKENS))
    assert [loss.tolist() for loss in config.balance_losses(routing)] == [[0.0, 0.0]] * 3


# ---- room ------------------------------------------------------------------------------------------------------------


def test_first_choices_come_before_second_ones_and_earlier_tokens_before_later_ones() -> None:
    """By hand, 4 tokens in 2 sequences on 4 experts: at a factor of 1 every expert has room for 2 of the 8 choices."""
    experts = torch.tensor([[[0, 1], [2, 0]], [[0, 1], [0, 1]]])
    over = over_capacity(experts, num_experts=4, capacity_factor=1.0)
    # expert 0: first choices of tokens 0, 2 and 3, then the second of token 1; expert 1: seconds of 0, 2 and 3
    assert over.tolist() == [[[False, False], [False, True]], [[False, False], [True, True]]]
    assert not over_capacity(experts, num_experts=4, capacity_factor=2.0).any()
    assert over_capacity(experts, num_experts=4, capacity_factor=0.49).all()  # 0.98 of a place is none
    assert int((~over_capacity(experts, num_experts=4, capacity_factor=0.5)).sum()) == 3  # one each of 0, 1 and 2


def test_a_second_expert_is_used_with_twice_its_gate() -> None:
    """Over 2000 tokens of gate g_2 = 0.2, and never where its gate is 0."""
    layer = GShard.Config(num_experts=2, expert_dim=1, capacity_factor=100.0).build(2).train()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(1.0)
        layer.router.w.copy_(torch.tensor([[0.8, 1.0], [0.2, 1.0]]).log())
    u = torch.tensor([1.0, 0.0]).expand(1, 2000, 2)
    _, routing = layer(u, Hints(seed=SEED))
    close(routing.gates[0, 0], torch.tensor([0.8, 0.2]), FLOAT32)
    used = float((~routing.dropped[..., 1]).double().mean())
    assert used == pytest.approx(0.4, abs=0.04)  # 3.7 standard deviations
    assert not routing.dropped[..., 0].any()
    _, sure = layer(100 * u, Hints(seed=SEED))
    assert sure.dropped[..., 1].all()


# ---- draws and determinism -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gshard", "switch"])
def test_what_is_drawn_follows_the_seed(kind: str) -> None:
    """The same again, another with another seed, another in each layer, and torch's generator without one."""
    model = model_of(kind).train()
    model(TOKENS, seed=1)
    state = torch.get_rng_state()
    first, again, other = (model(TOKENS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)
    assert not torch.equal(model(TOKENS).logits, model(TOKENS).logits)
    assert not torch.equal(
        Hints(seed=2).uniform(3, device=TOKENS.device), Hints(seed=3).uniform(3, device=TOKENS.device)
    )


def test_layers_draw_apart() -> None:
    """Two layers of one step, and two steps, share no seed."""
    seen: list[int | None] = []
    model = model_of("gshard").train()
    for layer in model.layers:
        layer.ffn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].seed))
    for seed in (0, 1, 2):
        model(TOKENS, seed=seed)
    assert len(set(seen)) == len(seen) == 6


@every
@pytest.mark.parametrize("training", [True, False])
def test_it_remembers_nothing(kind: str, training: bool) -> None:
    layer = references.randomise(KINDS[kind].Config(**SIZES).build(5).double(), seed=10).train(training)
    before = references.remembered(layer)
    u, hints = references.random(*SHAPE, seed=11), Hints(tokens=TOKENS, seed=SEED)
    (first, routing), (second, same) = layer(u, hints), layer(u, hints)
    assert references.remembered(layer) == before
    assert torch.equal(first, second)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(routing, same, strict=True))


def test_a_hash_is_fixed_and_spreads() -> None:
    """It depends on id, seed and number of experts alone, and sends 4096 ids evenly to 16 experts."""
    ids = torch.arange(4096)[None]
    routers = [Hash.Config(num_experts=16, expert_dim=1, hash_seed=seed).build(4).router for seed in (0, 0, 1)]
    first, again, other = (router(ids) for router in routers)
    assert torch.equal(first, again)
    assert float((first == other).double().mean()) == pytest.approx(1 / 16, abs=0.02)
    counts = torch.bincount(first.flatten(), minlength=16)
    assert ((counts - 256).abs() < 4 * 16).all()  # 4 standard deviations of 16
    assert first[0, :200].tolist() == [references_baselines.random_hash(token, 0, 16) for token in range(200)]


def test_a_hash_layer_without_tokens_says_so() -> None:
    with pytest.raises(ValueError, match=r"^tokens=None: a hash layer routes by the ids"):
        Hash.Config(**SIZES).build(5)(torch.zeros(SHAPE))


def test_a_hash_layer_has_no_router_weights() -> None:
    assert "router.w" not in dict(Hash.Config(**SIZES).build(5).named_parameters())


# ---- whole models ----------------------------------------------------------------------------------------------------


def model_of(kind: str, **more: float) -> Transformer:
    """Two layers of this type, weights that are seen, float64."""
    config = Transformer.Config(
        vocab_size=10,
        dim=6,
        num_layers=2,
        attention=GQA.Config(num_heads=2, num_kv_heads=1, head_dim=4),
        ffn=KINDS[kind].Config(**SIZES, **more),
        norm_eps=1e-2,
    )
    return references.randomise(config.build().double(), seed=1)


@every
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_logits_and_gradients(kind: str, training: bool) -> None:
    """Of the whole model, weight by weight, against a model of loops."""
    model = model_of(kind).train(training)
    output = model(TOKENS, seed=3)
    leaves = dict(model.named_parameters())
    own = references.twin(leaves)
    thetas = references.rope_frequencies(4, 10000.0)
    x = own["embedding"][TOKENS]
    for index in range(2):
        w = under(f"layers.{index}.", own)

        def attend(h: Tensor, w: dict = w) -> Tensor:
            heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "rope_dim": 4}
            return references.gqa(h, under("attention.", w), **heads, thetas=thetas)

        def feed(h: Tensor, w: dict = w, index: int = index) -> Tensor:
            w = under("ffn.", w)
            found = routed(kind, h, w, SIZES, training, seed=3 * 2 + index)
            assert torch.equal(output.routings[index].experts, found.experts)
            return references_baselines.moe(
                h, w, experts=found.experts, gates=found.gates, dropped=found.dropped, expert_dim=3
            )

        x = references.block(x, (w["attention_norm.w"], w["ffn_norm.w"]), 1e-2, attend, feed)
    logits = references.rms_norm(x, own["norm.w"], 1e-2) @ own["head"].T
    same_values_and_gradients(output.logits, logits, leaves, own, FLOAT32)


def under(prefix: str, w: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in w.items() if name.startswith(prefix)}


@every
@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 2]])
def test_decoding_is_the_whole_sequence_and_company_does_not_matter(kind: str, chunks: list[int]) -> None:
    """Neither caches nor what shares the batch change a result in evaluation, however small the room in training."""
    more = {} if kind == "hash" else {"capacity_factor": 0.1}
    model = model_of(kind, **more).float().eval()
    with torch.no_grad():
        caches = allocate_model(model, batch_size=2, max_length=7)
        pieces = [model(part, caches=caches).logits for part in TOKENS.split(chunks, dim=1)]
        whole = model(TOKENS).logits
        close(torch.cat(pieces, dim=1), whole, FLOAT32_MODULE)
        close(model(TOKENS[1:]).logits, whole[1:], FLOAT32_MODULE)
    generated = dsv2.generate(model, TOKENS[:, :3], max_new_tokens=3)
    for length in (3, 4, 5):
        assert torch.equal(model(generated[:, :length]).logits[:, -1].argmax(-1), generated[:, length])


@every
def test_recorded_choices_are_replayed_with_live_gates(kind: str) -> None:
    model, other = model_of(kind).eval(), model_of(kind).eval()
    shifted = (TOKENS + 1) % 10
    recorded = other(shifted).routings
    replayed = model(TOKENS, routings=recorded)
    assert not torch.equal(model(TOKENS).routings[0].experts, recorded[0].experts)
    for routing, record in zip(replayed.routings, recorded, strict=True):
        assert torch.equal(routing.experts, record.experts)
        live = routing.affinities.gather(-1, record.experts)
        close(routing.gates, live / live.sum(-1, keepdim=True) if kind == "gshard" else live, FLOAT32)
    close(model(TOKENS, routings=model(TOKENS).routings).logits, model(TOKENS).logits, 0.0)


# ---- configs ---------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("top_k", 3, "chooses|names"),
        ("max_devices", 1, "no device limit"),
        ("routed_scaling_factor", 2.0, "scales no output"),
        ("dropping", "{_target_: dsv2.models.moe.dropping.Dropping.Config}", "drops nothing by device"),
        ("num_devices", 2, "a divisor of num_experts=9"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(kind: str, field: str, value: object, valid: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.ffn\.{field}=.*({valid})"):
        dsv2.load([f"model/ffn={kind}", f"++model.ffn.{field}={value}"])


@pytest.mark.parametrize(("field", "value"), [("capacity_factor", 0.0), ("jitter", 1.0), ("jitter", -0.1)])
def test_ranges(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^model\.ffn\.{field}="):
        dsv2.load(["model/ffn=switch", f"model.ffn.{field}={value}"])


def test_every_type_comes_from_its_yaml() -> None:
    kinds: dict[str, Callable] = {"dense": SwiGLU, "moe": MoE, **KINDS}
    for name, kind in kinds.items():
        config = dsv2.load([f"model/ffn={name}"]).model
        assert type(config.ffn) is kind.Config
        assert type(config.build().layers[-1].ffn) is kind
