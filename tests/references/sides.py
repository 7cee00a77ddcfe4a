"""Both sides of a comparison: weights, leaves and what a module holds."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.references.basics import Weights


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every matrix normal with variance 1 / its last axis, every vector 1 +- 0.3: no weight is invisible."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = 1 + 0.3 * values if parameter.dim() == 1 else values / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(values)
    return module


def random(*shape: int, seed: int) -> Tensor:
    """Normal float64 numbers that ask for a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def twin(leaves: Weights) -> dict[str, Tensor]:
    """The same values in float64 as leaves of their own, for the reference to differentiate."""
    return {name: leaf.detach().double().clone().requires_grad_() for name, leaf in leaves.items()}


def remembered(module: torch.nn.Module) -> dict[str, str]:
    """All that a module and its children hold, attributes that are no parameters included; compare before and after."""
    held = {
        f"{name}.{key}": repr(value) for name, child in module.named_modules() for key, value in vars(child).items()
    }
    return held | {name: repr(value.tolist()) for name, value in module.state_dict().items()}


def remembers_nothing(module: torch.nn.Module, call: Callable[[], Any]) -> None:
    """No buffer, list or attribute of `module` differs after calls, and a second call gives what the first gave."""
    before = remembered(module)
    first, second = tree_leaves(call()), tree_leaves(call())
    assert remembered(module) == before
    assert len(first) == len(second)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))
