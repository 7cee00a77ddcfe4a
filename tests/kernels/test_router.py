"""The choice of experts in plain torch beside its specification."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.router import route_logits
from tests.references.kernels import agrees, normal


@pytest.mark.parametrize(
    ("shape", "top_k", "num_devices", "max_devices"),
    [((1, 1, 1), 1, 1, None), ((2, 7, 6), 2, 3, 1), ((2, 7, 6), 3, 3, 2), ((1, 7, 8), 3, 4, 4), ((5, 160), 6, 8, 3)],
)
def test_values_and_gradients_are_those_of_the_specification(
    shape: tuple[int, ...], top_k: int, num_devices: int, max_devices: int | None
) -> None:
    """Where no affinities are equal, whose order `torch.topk` leaves open."""
    limits = {"top_k": top_k, "num_devices": num_devices, "max_devices": max_devices}
    logits = 2 * normal(*shape)
    assert torch.equal(route_logits(logits, **limits)[1], reference.route_logits(logits, **limits)[1])
    for output in (0, 2):
        agrees(
            lambda x, output=output: route_logits(x, **limits)[output],
            lambda x, output=output: reference.route_logits(x, **limits)[output],
            logits,
        )


def test_the_specification_by_hand() -> None:
    """Three devices of two experts; of two equal ones the first counts as the higher."""
    logits = torch.tensor([0.24, 0.25, 0.30, 0.05, 0.15, 0.01])
    for limit, chosen in ((1, [2, 3]), (2, [2, 1]), (None, [2, 1])):
        experts = reference.route_logits(logits[None], top_k=2, num_devices=3, max_devices=limit)[1]
        assert experts.tolist() == [chosen]
    assert reference.route_logits(torch.zeros(1, 6), top_k=3, num_devices=3, max_devices=2)[1].tolist() == [[0, 1, 2]]
