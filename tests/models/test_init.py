"""Initial weights: their spread, and that models which share a parameter start it from the same numbers."""

import pytest
import torch
from torch import nn

import dsv2
from dsv2.models.init import initialise
from dsv2.models.transformer import Transformer


def build(*overrides: str, seed: int = 0) -> Transformer:
    return dsv2.load(["model.dim=16", "model.vocab_size=2048", "model.init_std=0.3", *overrides]).model.build(seed=seed)


class Small(nn.Module):
    """An embedding, a matrix and a norm weight, far from what `initialise` gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.full((300, 200), 7.0))
        self.w = nn.Parameter(torch.full((200, 300), 7.0))
        self.norm = nn.Parameter(torch.full((200,), 7.0))


def initialised(seed: int = 0) -> dict[str, torch.Tensor]:
    model = Small()
    initialise(model, std=0.02, embedding_std=0.5, seed=seed)
    return dict(model.named_parameters())


def test_matrices_embedding_and_norms_have_spreads_of_their_own() -> None:
    """60,000 normal numbers have their mean within 4 standard errors of 0 and their spread within 1% of the asked."""
    weights = initialised()
    for name, std in (("w", 0.02), ("embedding", 0.5)):
        assert weights[name].std().item() == pytest.approx(std, rel=0.012)
        assert abs(weights[name].mean().item()) < 4 * std / 60_000**0.5
    assert (weights["norm"] == 1).all()


def test_a_weight_depends_on_seed_name_and_shape_alone() -> None:
    """Not on torch's generator, which is left where it was, nor on the weights before it."""
    state = torch.get_rng_state()
    first, again, other = initialised(), initialised(), initialised(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in ("w", "embedding"))
    alone = nn.ParameterDict({"w": torch.empty(200, 300)})
    initialise(alone, std=0.02, embedding_std=0.5, seed=0)
    assert torch.equal(alone["w"], first["w"])


def test_the_precision_changes_no_more_than_the_rounding() -> None:
    """Drawn in float32 whatever the parameter's dtype."""
    model = Small().bfloat16()
    initialise(model, std=0.02, embedding_std=0.5, seed=0)
    assert torch.equal(model.w, initialised()["w"].bfloat16())


def test_nothing_is_drawn_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Small()
        initialise(model, std=0.02, embedding_std=0.5, seed=0)
    assert all(weight.is_meta for weight in model.parameters())


# ---- whole models ----------------------------------------------------------------------------------------------------


def test_what_two_models_share_starts_alike() -> None:
    mla, mha = (dict(build(f"model/attention={kind}").named_parameters()) for kind in ("mla", "mha"))
    shared = [name for name in mla if name in mha and mla[name].shape == mha[name].shape]
    assert {"embedding", "head", "layers.1.ffn.experts.w_down", "layers.0.attention.w_o"} <= set(shared)
    assert all(torch.equal(mla[name], mha[name]) for name in shared)
    other = dict(build(seed=1).named_parameters())
    assert not any(torch.equal(mla[name], other[name]) for name in mla if mla[name].dim() > 1)


@pytest.mark.parametrize(("overrides", "embedding"), [([], 0.006), (["model.embedding_std=0.5"], 0.5)])
def test_initial_weights_have_the_std_of_the_config(overrides: list[str], embedding: float) -> None:
    model = dsv2.load(["model.init_std=0.006", *overrides]).model.build()
    weights = dict(model.named_parameters())
    assert weights["embedding"].std().item() == pytest.approx(embedding, rel=0.01)
    assert weights["head"].std().item() == pytest.approx(0.006, rel=0.01)
    assert all((weight == 1).all() for weight in weights.values() if weight.dim() == 1)


def test_weights_of_one_shape_start_apart() -> None:
    """Each draws from its own name: no two layers, and no two weights of a layer, are copies."""
    weights = [weight for weight in build("model.num_layers=3").parameters() if weight.dim() > 1]
    for index, weight in enumerate(weights):
        alike = [other for other in weights[:index] if other.shape == weight.shape]
        assert not any(torch.equal(weight, other) for other in alike)
