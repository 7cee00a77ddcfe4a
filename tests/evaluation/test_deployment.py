"""What is measured of a deployed model: its answers beside those of the model, and the bytes of its cache."""

import numpy as np
import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.evaluation.deployment import PROMPTS, measure_deployment
from dsv2.inference.deployed import Deployed
from dsv2.models.attention.precision import KVPrecision
from dsv2.models.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return dsv2.load(["model.vocab_size=2048", "model.init_std=0.1"]).model.build(seed=3).eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randint(2048, (4, 16), generator=torch.Generator().manual_seed(1))


def test_a_model_agrees_with_itself(model: Transformer, inputs: Tensor) -> None:
    measured = measure_deployment(model, Deployed.Config(), inputs)
    assert measured["deployed/agreement"] == 1.0
    assert measured["deployed/kv_bits"] == 32.0
    assert measured["deployed/kv_bytes_per_token"] == 4 * dsv2.account(model.config).kv_elements_per_token


def test_fewer_bits_agree_less(model: Transformer, inputs: Tensor) -> None:
    shares = []
    for bits in (2, 4, 8):
        kv = KVPrecision.Config(bits=bits)
        measured = measure_deployment(model, Deployed.Config(kv=kv), inputs)
        shares.append(measured["deployed/agreement"])
        account = dsv2.account(model.config, kv=kv)
        assert measured["deployed/kv_bytes_per_token"] == account.kv_bytes_per_token
        assert measured["deployed/kv_bits"] == pytest.approx(account.kv_bits)
    assert shares[0] < shares[1] < shares[2] <= 1


def test_agreement_ends_with_the_first_difference(
    model: Transformer, inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that are equal again after one that is not do not count."""
    answers = iter([np.array([[5, 6, 7, 8], [5, 6, 7, 8]]), np.array([[5, 0, 7, 8], [5, 6, 7, 8]])])
    monkeypatch.setattr("dsv2.evaluation.deployment._continued", lambda *_: (next(answers), 64.0))
    assert measure_deployment(model, Deployed.Config(), inputs)["deployed/agreement"] == 5 / 8


def test_at_most_so_many_prompts_are_continued(model: Transformer) -> None:
    """Their number does not depend on the validation set, which may be long."""
    many = torch.randint(2048, (PROMPTS + 5, 4), generator=torch.Generator().manual_seed(1))
    few = measure_deployment(model, Deployed.Config(precision="bf16"), many[:PROMPTS])
    assert measure_deployment(model, Deployed.Config(precision="bf16"), many) == few
