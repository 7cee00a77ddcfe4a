"""Rows that travel between two processes, and their gradients back."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dsv2.distributed.exchange import Exchange, Meter
from tests.references import ranks

SENT = [[1, 3], [0, 2]]  # rows from process i to process j


def rows_of(rank: int) -> Tensor:
    return torch.arange(8.0).view(4, 2)[: sum(SENT[rank])] + 100 * rank


def exchanged() -> dict[str, Any]:
    """Send, answer and differentiate, twice: nothing is left of the first time."""
    rank, meter = dist.get_rank(), Meter()
    received = [sent[rank] for sent in SENT]
    for _ in range(2):
        meter.clear()
        rows = rows_of(rank).requires_grad_()
        there = Exchange(dist.new_group(), SENT[rank], received, meter)
        arrived = there.arrive(there.depart(rows))
        back = there.reversed()
        returned = back.arrive(back.depart(arrived * 2))
        (returned * torch.arange(1.0, 1 + len(rows))[:, None]).sum().backward()
    return {"arrived": arrived.detach(), "returned": returned.detach(), "gradient": rows.grad, "meter": meter}


def test_rows_and_gradients_go_there_and_back(tmp_path: Path) -> None:
    """One process sends nothing to the other, which sends it three rows. Memory that nobody wrote would be NaN."""
    first, second = ranks.run(exchanged, 2, tmp_path)
    assert torch.equal(first["arrived"], rows_of(0)[:1])
    assert torch.equal(second["arrived"], torch.cat([rows_of(0)[1:], rows_of(1)]))
    for rank, result in enumerate((first, second)):
        assert torch.equal(result["returned"], 2 * rows_of(rank))
        weights = torch.arange(1.0, 1 + len(rows_of(rank)))[:, None].expand_as(rows_of(rank))
        assert torch.equal(result["gradient"], 2 * weights)
        assert result["meter"] == Meter(rows=2 * 3 * 2 * 4)  # forward and backward, three rows of two float32


def test_a_meter_adds_up_what_it_counts() -> None:
    meter = Meter(rows=5, extra=2)
    assert meter.total == 7
    meter.clear()
    assert meter == Meter(0, 0)


def test_only_what_departed_arrives() -> None:
    with ranks.group_of_one() as group, pytest.raises(AssertionError, match="nothing was sent"):
        Exchange(group, [1], [1], Meter()).finish()
