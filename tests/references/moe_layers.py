"""Layers of every type, with plain torch and with other kernels: what they compute and their gradients."""

import torch

from dsv2.kernels.choice import using
from dsv2.models.moe import V3, GShard, Hash, LossFree, MoE, Sigmoid, Switch
from dsv2.models.moe.dropping import Dropping
from dsv2.models.moe.hints import Hints
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32_MODULE, close

SIZES = {"num_experts": 6, "expert_dim": 5}
LAYERS = {
    "DeepSeekMoE": MoE.Config(**SIZES, top_k=3, num_shared=2, num_devices=3, max_devices=2),
    "dropping": MoE.Config(**SIZES, top_k=3, num_devices=3, dropping=Dropping.Config()),
    "scaled": MoE.Config(**SIZES, top_k=2, routed_scaling_factor=2.5),
    "LossFree": LossFree.Config(**SIZES, top_k=3, num_devices=3, max_devices=2),
    "Sigmoid": Sigmoid.Config(**SIZES, top_k=3, num_devices=3, dropping=Dropping.Config()),
    "V3": V3.Config(**SIZES, top_k=3, routed_scaling_factor=2.5),
    "GShard": GShard.Config(**SIZES),
    "Switch": Switch.Config(**SIZES),
    "Hash": Hash.Config(**SIZES),
}


def same_layer(config: MoE.Config, kernels: str, length: int, device: torch.device | str = "cpu") -> None:
    """Two sequences of `length` tokens get the experts, outputs and gradients that plain torch gives them."""
    tokens = torch.arange(2 * length, device=device).view(2, length)
    results = []
    for chosen in (kernels, "torch"):
        layer = config.build(8).train().to(device)
        for number, parameter in enumerate(layer.parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
        u = normal(2, length, 8).to(device).requires_grad_()
        with using(chosen):
            out, routing = layer(u, Hints(tokens=tokens, seed=3))
            (out * normal(2, length, 8, seed=9).to(device)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        results.append((out, routing, {"input": u.grad, **gradients}))
    (out, routing, gradients), (expected, expected_routing, expected_gradients) = results
    assert torch.equal(routing.experts, expected_routing.experts)
    close(out, expected, FLOAT32_MODULE)
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (gradients[name] is None)
        if gradient is not None:
            close(gradients[name], gradient, FLOAT32_MODULE, name)
