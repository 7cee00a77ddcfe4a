"""An op beside its specification in `dsv2.kernels.reference`, or beside any other function of the same inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.references.tolerances import FLOAT32, close


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def agrees(
    op: Callable[..., Tensor], specification: Callable[..., Tensor], *inputs: Tensor, tolerance: float = FLOAT32
) -> None:
    """Both give the same values, and the same gradients of one random weighting of them for every floating input."""
    results = []
    for function in (op, specification):
        copies = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        out = function(*copies)
        weights = normal(*out.shape, seed=9, dtype=out.dtype)
        (out * weights).sum().backward()
        results.append((out, [x.grad for x in copies if x.is_floating_point()]))
    (out, gradients), (expected, expected_gradients) = results
    close(out, expected, tolerance, "output")
    for index, (gradient, expected_gradient) in enumerate(zip(gradients, expected_gradients, strict=True)):
        close(gradient, expected_gradient, tolerance, f"gradient {index}")
