"""A whole model with every Triton op beside the same model in plain torch."""

import pytest
import torch

import dsv2
from dsv2.kernels.choice import using
from tests.references.fences import DEVICE
from tests.references.tolerances import FLOAT32_MODULE, close

SMALL = [
    "data.vocab_size=300",
    "model.vocab_size=300",
    "model.dim=16",
    "model.num_layers=2",
    "model.shape.num_experts=4",
    "model.shape.top_k=2",
    "model.shape.num_devices=2",
    "model.shape.expert_dim=8",
    "model.shape.ffn_dim=24",
]


@pytest.mark.usefixtures("triton_ops")
@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_loss_and_gradients_are_those_of_plain_torch(attention: str) -> None:
    tokens = torch.randint(300, (2, 8), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    losses, gradients = {}, {}
    for kernels in ("torch", "triton"):
        with using(kernels):
            model = dsv2.load([*SMALL, f"model/attention={attention}"]).model.build(seed=1).to(DEVICE)
            hidden, _ = model.hidden(tokens[:, :-1])
            losses[kernels] = model.mean_nats(hidden, tokens[:, 1:])
            losses[kernels].backward()
            gradients[kernels] = {name: parameter.grad for name, parameter in model.named_parameters()}
    close(losses["triton"], losses["torch"], FLOAT32_MODULE, "loss")
    for name, gradient in gradients["torch"].items():
        close(gradients["triton"][name], gradient, FLOAT32_MODULE, name)
