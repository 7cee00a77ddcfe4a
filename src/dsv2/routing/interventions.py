"""Interventions on the experts of a trained model (DeepSeekMoE, arXiv 2401.06066, sections 4.4 and 4.5).

Each returns named models that share the weights of the original and do not change it: siblings, built from a changed
config over the same tensors. The caller chooses what to measure on them.

E routed experts, K of them per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from dsv2.config import ConfigError
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Router
from dsv2.models.transformer import Transformer
from dsv2.routing.observed import SequenceLosses, difference

RATIOS = (0, 1 / 16, 1 / 8, 3 / 16, 1 / 4)  # of the routed experts that are masked, as in section 4.4
PLAIN = "as trained"
Name = TypeVar("Name", str, int)


class DoesNotApply(ValueError):
    """An analysis does not apply to this run; the message says why."""


def moe_config(model: Transformer) -> MoE.Config:
    """Return the config of the model's MoE layers. Raises DoesNotApply for a dense model."""
    if model.config.moe is None:
        raise DoesNotApply("a dense model has no routing")
    return model.config.moe


def sibling(model: Transformer, ffn: MoE.Config) -> Transformer:
    """Build the model with another config of its MoE layers, over the same weight tensors, in evaluation mode.

    Unused weights are left out; missing weights are an error.
    """
    with torch.device("meta"):
        other: Transformer = replace(model.config, ffn=ffn).build(ops=model.ops)
    names = other.state_dict().keys()
    other.load_state_dict({name: w for name, w in model.state_dict().items() if name in names}, assign=True)
    return other.eval()


def shared_off(model: Transformer) -> dict[str, Transformer]:
    """Return the model as trained, without shared experts, with one more routed expert, and with both changes.

    Invalid combinations are left out. Raises DoesNotApply if there are no shared experts.
    """
    ffn = moe_config(model)
    if not ffn.num_shared:
        raise DoesNotApply("the run has no shared experts")
    variants = {
        PLAIN: (ffn.num_shared, ffn.top_k),
        "shared off": (0, ffn.top_k),
        "one more routed": (ffn.num_shared, ffn.top_k + 1),
        "shared off, one more routed": (0, ffn.top_k + 1),
    }
    return _buildable(model, variants)


def fewer_experts(model: Transformer) -> dict[int, Transformer]:
    """Return the model with K to 1 routed experts per token. Raises DoesNotApply if K is 1 or fixed by the layer."""
    ffn = moe_config(model)
    models = _buildable(model, {top_k: (ffn.num_shared, top_k) for top_k in range(ffn.top_k, 0, -1)})
    if len(models) < 2:
        raise DoesNotApply(f"the layer cannot route to fewer than its {ffn.top_k} experts")
    return models


def top_masked(model: Transformer, ratios: tuple[float, ...] = RATIOS) -> dict[int, Transformer]:
    """Return models that mask each token's experts of highest affinity in every layer, by the number masked.

    Gates are the affinities of the experts chosen instead, not rescaled. Ratios that round to the same number, or
    leave fewer than K experts, are left out. Raises DoesNotApply if experts are not chosen by affinity.
    """
    ffn = moe_config(model)
    models = {}
    for count in sorted({round(ratio * ffn.num_experts) for ratio in ratios}):
        if ffn.num_experts - count < ffn.top_k:
            continue
        models[count] = sibling(model, ffn)
        routers = [module for module in models[count].modules() if isinstance(module, Router)]
        if not routers:
            raise DoesNotApply("experts are not chosen by affinity")
        for router in routers:
            router.register_forward_hook(_without_top(count))
    if len(models) < 2:
        raise DoesNotApply(f"{ffn.num_experts} experts are too few to mask some and choose {ffn.top_k}")
    return models


def _without_top(count: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that sets the `count` highest affinities of each token to 0, so that they are not chosen."""

    def hook(router: nn.Module, inputs: Any, affinities: Tensor) -> Tensor:
        return affinities.scatter(-1, affinities.topk(count, dim=-1).indices, 0.0)

    return hook


def _buildable(model: Transformer, variants: Mapping[Name, tuple[int, int]]) -> dict[Name, Transformer]:
    """Build a sibling for each (shared experts, routed experts per token) that the layer's config allows."""
    models = {}
    for name, (num_shared, top_k) in variants.items():
        try:
            ffn = replace(moe_config(model), num_shared=num_shared, top_k=top_k)
        except ConfigError:
            continue
        models[name] = sibling(model, ffn)
    return models


def compared(
    models: Mapping[Name, Transformer], measure: Callable[[Transformer], SequenceLosses], *, column: str
) -> pd.DataFrame:
    """Return one row per model: name (in `column`), loss, and the difference to the first, paired by sequence."""
    measured = {name: measure(model) for name, model in models.items()}
    plain = next(iter(measured.values()))
    rows = [
        {column: name, "loss": losses.mean} | difference(losses, plain)._asdict() for name, losses in measured.items()
    ]
    return pd.DataFrame(rows).rename(columns={"mean": "difference"})
