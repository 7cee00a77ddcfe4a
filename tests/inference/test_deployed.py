"""Deployed models: what is rounded, that it is shared otherwise, and what does not fit together."""

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.inference.cache import allocate_model
from dsv2.inference.deployed import Deployed, allocate_caches, with_cache_of
from dsv2.inference.precision import OPS
from dsv2.inference.quantised import allocate_quantised_model
from dsv2.kernels.fp8 import quantise_blocks
from dsv2.models.attention.precision import KVPrecision
from dsv2.models.transformer import Transformer

SIX = KVPrecision.Config(bits=6)
FFNS = ("moe", "dense", "gshard", "switch", "hash")


def build(*overrides: str) -> Transformer:
    return dsv2.load(["model.vocab_size=2048", "model.init_std=0.1", *overrides]).model.build(seed=3).eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(2048, (2, 24), generator=torch.Generator().manual_seed(1))


def off(deployed: Transformer, model: Transformer, tokens: Tensor) -> float:
    with torch.no_grad():
        plain, got = model(tokens).logits, deployed(tokens).logits.float()
    return float((got - plain).norm() / plain.norm())


def test_nothing_to_change_is_the_model_itself() -> None:
    model = build()
    assert Deployed.Config().of(model) is model


@pytest.mark.parametrize("attention", ["mla", "mha", "gqa", "mqa"])
def test_without_caches_attention_sees_what_a_cache_would_hold(attention: str, tokens: Tensor) -> None:
    model = build(f"model/attention={attention}")
    deployed = Deployed.Config(kv=SIX).of(model)
    with torch.no_grad():
        expected = model(tokens, caches=allocate_quantised_model(model, SIX, batch_size=2, max_length=24)).logits
        assert torch.equal(deployed(tokens).logits, expected)
        plain = allocate_model(model, batch_size=2, max_length=24)
        assert torch.equal(
            deployed(tokens, caches=plain).logits,
            model(tokens, caches=allocate_model(model, batch_size=2, max_length=24)).logits,
        )
    assert 0.001 < off(deployed, model, tokens) < 0.2


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize(("precision", "low", "high"), [("bf16", 1e-4, 0.2), ("fp8", 0.005, 0.4)])
def test_products_are_in_the_precision(ffn: str, precision: str, low: float, high: float, tokens: Tensor) -> None:
    """Within what is seen if a token goes to another expert."""
    model = build(f"model/ffn={ffn}")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    deployed = Deployed.Config(precision=precision).of(model)
    assert low < off(deployed, model, tokens) < high
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_all_matrices_of_products_are_rounded_to_fp8_and_nothing_else() -> None:
    model = build("model.shape.q_latent_dim=12")
    deployed = Deployed.Config(precision="fp8").of(model)
    ours, theirs = dict(deployed.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        product = weight.dim() > 1 and name != "embedding" and not name.endswith("router.w")
        assert torch.equal(ours[name], weight) != product, name
        if product:
            matrix = (lambda w: w.mT if w.dim() == 3 else w)(ours[name])
            assert (
                torch.equal(quantise_blocks(matrix).decode(), matrix)
                or ((quantise_blocks(matrix).decode() - matrix).abs() <= 1e-6 * matrix.abs()).all()
            )
        else:
            assert ours[name].data_ptr() == weight.data_ptr()  # shared


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_a_precision_goes_with_a_cache(attention: str, precision: str, tokens: Tensor) -> None:
    """Also token by token, where latents are attended to with absorbed weights."""
    model = build(f"model/attention={attention}")
    config = Deployed.Config(precision=precision, kv=KVPrecision.Config(bits=8))
    deployed = config.of(model)
    assert off(deployed, model, tokens) < 0.3
    with torch.no_grad():
        whole = deployed(tokens).logits.float()
        caches = allocate_caches(deployed, batch_size=2, max_length=24)
        steps = [deployed(tokens[:, [t]], caches=caches).logits.float() for t in range(24)]
    assert (torch.cat(steps, 1) - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("kv", [None, SIX])
def test_caches_are_those_of_the_deployment(precision: str, kv: KVPrecision.Config | None, tokens: Tensor) -> None:
    """Without one of its own, a cache in bfloat16 loses nothing of keys and values that are in bfloat16."""
    model = build()
    config = Deployed.Config(precision=precision, kv=kv)
    deployed, per_token = config.of(model), dsv2.account(model.config).kv_elements_per_token
    caches = allocate_caches(deployed, batch_size=2, max_length=24)
    if kv is None:
        assert caches.num_bytes == 2 * 24 * per_token * (4 if precision == "fp32" else 2)
    else:
        assert caches.num_bytes == 2 * 24 * dsv2.account(model.config, kv=kv).kv_bytes_per_token
    with torch.no_grad():
        got, whole = deployed(tokens, caches=caches).logits.float(), deployed(tokens).logits.float()
    # with absorbed weights, FP8 rounds no latents
    assert (got - whole).norm() < (0.15 if precision == "fp8" else 0.02) * whole.norm()


def test_the_mode_is_kept() -> None:
    model = build()
    assert not Deployed.Config(precision="fp8").of(model).training
    assert Deployed.Config(precision="fp8").of(model.train()).training


def test_what_does_not_fit_is_refused() -> None:
    rotated = Deployed.Config(kv=KVPrecision.Config(bits=4, hadamard=True))
    with pytest.raises(ConfigError, match="hadamard=True is not valid: false for attention without a latent"):
        rotated.of(build("model/attention=mha"))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_model_in_training_precision_is_generated_from_as_well(precision: str, tokens: Tensor) -> None:
    """Products in bfloat16 do not fit float32 caches."""
    model = dsv2.load(["model.vocab_size=2048"]).model.build(seed=3, ops=OPS[precision]).eval()
    with torch.no_grad():
        model(tokens, caches=allocate_caches(model, batch_size=2, max_length=25))
    assert dsv2.generate(model, tokens, max_new_tokens=3).shape == (2, 27)


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_generate_takes_bits(attention: str, tokens: Tensor) -> None:
    """The same as a deployed model's answers, and not those of a plain cache."""
    model = build(f"model/attention={attention}")
    got = dsv2.generate(model, tokens, max_new_tokens=12, kv_bits=3)
    assert torch.equal(got, dsv2.generate(with_cache_of(3).of(model), tokens, max_new_tokens=12))
    assert not torch.equal(got, dsv2.generate(model, tokens, max_new_tokens=12))
    ragged = [tokens[0, :9], tokens[1]]
    together = dsv2.generate(model, ragged, max_new_tokens=5, kv_bits=4)
    for row, prompt in enumerate(ragged):
        assert torch.equal(together[row], dsv2.generate(model, [prompt], max_new_tokens=5, kv_bits=4)[0])


@pytest.mark.parametrize(
    ("bits", "rope_bits", "message"),
    [
        (7, None, "kv_bits=7 is not valid: one of 16, 8, 6, 5, 4, 3, 2"),
        (0, None, "kv_bits=0 is not valid"),
        (6, 9, "rope_bits=9 is not valid: one of 16"),
        (None, 16, "rope_bits=16 is not valid: given beside kv_bits"),
    ],
)
def test_bits_that_are_not_offered_are_refused(bits: int | None, rope_bits: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_cache_of(bits, rope_bits)
    assert str(caught.value).startswith(message)


def test_bits_are_those_of_the_deployment() -> None:
    assert with_cache_of(None) == Deployed.Config()
    assert with_cache_of(4, 16) == Deployed.Config(kv=KVPrecision.Config(bits=4, rope_bits=16))
