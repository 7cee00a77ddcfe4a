"""How far a result may lie from its reference: every tolerance of the tests, each with its reason.

A tolerance is relative to the largest element of the reference, so that small elements are held as tightly as the
sums that they come from allow.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# Same numbers, copied or compared: nothing is rounded.
EXACT = 0.0

# Float64 all the way, sums of under 100 terms in another order: 100 x 2^-53 is 1.1e-14, ten times that for the chain.
FLOAT64 = 1e-13

# Norms, router, softmax, losses and angles are cast to float32: a rounding of 2^-24 = 6e-8 at each of a few steps;
# gradients pass them twice. Measured on the suite's shapes: under 1e-6.
FLOAT32 = 3e-6

# A whole module in float32: dot products of up to 64 terms in every matrix, 64 x 2^-24 = 4e-6 at the worst.
FLOAT32_MODULE = 1e-5

# Float16 from one rounding to another in float32: up to four of 2^-11, of inputs' products, outputs and gradients.
FLOAT16 = 2e-3

# Bfloat16 alike: up to three of 2^-8, which are of 2^-7 under Triton's interpreter, since it truncates.
BFLOAT16 = 2.4e-2

# A float32 angle: theta_j is off by a few of 2^-24, the product once more, so cos and sin by this times the angle.
ANGLE = 4e-7

# The same for YaRN: where 1 - ramp is small, its rounding is a larger part of theta_j (4.7e-7 seen at a width of 128).
YARN_ANGLE = 1e-6

# A reference below this counts as this large: a gradient that cancels to 0, of terms about 1, is not 0 after rounding.
SMALLEST_SCALE = 0.1


def close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "value") -> None:
    """Raise AssertionError unless every element of `actual` is within tolerance x the largest of `expected`."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    if not actual.numel():
        return
    wide = torch.complex128 if expected.is_complex() else torch.float64
    error = float((actual.detach().to(wide) - expected.detach().to(wide)).abs().max())
    scale = max(float(expected.detach().abs().max()), SMALLEST_SCALE)
    assert error <= tolerance * scale, f"{name}: off by {error:.3e}, {error / scale:.1e} of {scale:.3e}"


def same_values_and_gradients(
    actual: Tensor,
    expected: Tensor,
    leaves: Mapping[str, Tensor],
    reference_leaves: Mapping[str, Tensor],
    tolerance: float,
) -> None:
    """The outputs agree, and so do the gradients of one random weighting of them with respect to every leaf."""
    assert leaves.keys() == reference_leaves.keys(), f"{sorted(leaves)} against {sorted(reference_leaves)}"
    close(actual, expected, tolerance, "value")
    weighting = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    names = list(leaves)
    gradients = _gradients((actual * weighting).sum(), [leaves[name] for name in names])
    reference = _gradients((expected * weighting).sum(), [reference_leaves[name] for name in names])
    for name, gradient, true_gradient in zip(names, gradients, reference, strict=True):
        close(gradient, true_gradient, tolerance, f"gradient of {name}")


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """d loss / d leaf for each leaf; zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
