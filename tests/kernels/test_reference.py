"""The specifications of the ops against loops over single numbers, in float64."""

import pytest
import torch

from dsv2.kernels import reference
from tests import references
from tests.references.tolerances import FLOAT64, close


@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 7)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, w = references.random(*shape, seed=1), references.random(shape[-1], seed=2)
    close(reference.rms_norm(x, w, 1e-2), references.rms_norm(x, w, 1e-2), FLOAT64)


def test_swiglu_halves_its_input_gate_first() -> None:
    """With unit matrices around it, it is the whole network."""
    x, unit = references.random(4, 6, seed=3), torch.eye(6, dtype=torch.float64)
    gate, up = references.halves(unit)
    expected = torch.stack([references.swiglu(row, gate, up, torch.eye(3, dtype=torch.float64)) for row in x])
    close(reference.swiglu(x), expected, FLOAT64)


def test_grouped_applies_each_experts_matrix_to_its_rows() -> None:
    rows, w = references.random(6, 3, seed=4), references.random(4, 3, 2, seed=5)
    experts = [0, 2, 2, 2, 3, 3]
    expected = torch.stack([w[expert].T @ row for row, expert in zip(rows, experts, strict=True)])
    close(reference.grouped(rows, torch.tensor([1, 0, 3, 2]), w), expected, FLOAT64)


def test_rows_go_to_experts_and_back() -> None:
    """Place n holds pair order[n] = K token + choice; what comes back is summed over a token's choices."""
    tokens, top_k, order = 3, 2, [4, 0, 3, 5, 1, 2]
    x, gates = references.random(tokens, 5, seed=6), references.random(tokens, top_k, seed=7)
    rows = reference.gather_rows(x, torch.tensor(order), top_k)
    close(rows, torch.stack([x[pair // 2] for pair in order]), FLOAT64)
    rows = references.random(6, 5, seed=8)
    expected = torch.zeros(tokens, 5, dtype=torch.float64)
    for place, pair in enumerate(order):
        expected[pair // 2] = expected[pair // 2] + gates[pair // 2, pair % 2] * rows[place]
    close(reference.weighted_sum(rows, gates, torch.tensor(order)), expected, FLOAT64)


def test_rotate_turns_neighbours_at_each_position() -> None:
    x = references.random(2, 3, 2, 4, seed=9)
    thetas = [0.3, 1.1]
    angles = torch.arange(3, dtype=torch.float64)[:, None] * torch.tensor(thetas, dtype=torch.float64)
    turned = reference.rotate(x, torch.polar(torch.ones_like(angles), angles))
    for b in range(2):
        for t in range(3):
            for head in range(2):
                close(turned[b, t, head], references.turn(x[b, t, head], t, thetas), FLOAT64)
