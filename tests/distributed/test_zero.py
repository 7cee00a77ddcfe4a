"""AdamW in parts: every element moves as in one process, and the state is saved and loaded as that of one process."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv2.distributed.mesh import Mesh
from dsv2.distributed.shards import Parts
from dsv2.distributed.zero import ZeroAdamW
from tests.references import ranks

STEPS, NAMES = 3, [["matrix", "experts"], ["vector"]]
ROUNDING = {"rtol": 1e-14, "atol": 1e-15}  # in float64: vectors of other lengths are rounded otherwise


def parts_of(experts: Tensor) -> Parts:
    """Weights of 6, 5 and, of the experts, some elements: more and fewer than fit evenly on several processes."""
    dense = {
        "matrix": nn.Parameter(torch.linspace(-1, 1, 6).double().view(2, 3)),
        "vector": nn.Parameter(torch.ones(5).double()),
    }
    return Parts(dense, {"experts": nn.Parameter(experts.clone())})


EXPERTS = torch.linspace(0, 1, 12).double().view(4, 3)


def plain(parts: Parts) -> torch.optim.AdamW:
    groups = [
        {"params": [parts.dense["matrix"], parts.experts["experts"]], "weight_decay": 0.1},
        {"params": [parts.dense["vector"]], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), fused=True)


def differentiate(parts: Parts, step: int, first_expert: int = 0) -> None:
    """Set gradients that depend on the step and on the place of an element in one process."""
    for number, weight in enumerate((*parts.dense.values(), *parts.experts.values())):
        start = first_expert * 3 if number == 2 else 0
        weight.grad = (torch.arange(weight.numel()) + start + number + 1.0).double().view_as(weight).sin() * (step + 1)


def stepped() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state after some steps of one process."""
    parts = parts_of(EXPERTS)
    optimizer = plain(parts)
    for step in range(STEPS):
        differentiate(parts, step)
        optimizer.step()
    weights = {name: weight.detach() for part in parts for name, weight in part.items()}
    return weights, optimizer.state_dict()


def same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two states of optimisers are equal within rounding."""
    assert state["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(state["state"], expected["state"], **ROUNDING)


def together() -> dict[str, Any]:
    """As `stepped`, in two processes; then once more from the state of one process."""
    results = {}
    for name, layout in (("ep", Mesh.Config(ep=2)), ("dp", Mesh.Config(dp=2))):
        mesh, whole = layout.build(), stepped()[1]
        own, first = EXPERTS.chunk(layout.ep)[mesh.ep_rank], 4 // layout.ep * mesh.ep_rank
        parts = parts_of(own)
        optimizer = ZeroAdamW(plain(parts), NAMES, parts, mesh)
        empty = optimizer.state_dict()
        for step in range(STEPS):
            differentiate(parts, step, first)
            optimizer.step()
        held = sum(moment.numel() for state in optimizer.state.values() for moment in (state["exp_avg"],))
        state = optimizer.state_dict()
        other = ZeroAdamW(plain(parts), NAMES, parts, mesh)
        other.load_state_dict(whole)
        differentiate(parts, STEPS, first)
        optimizer.zero_grad()
        results[name] = {
            "weights": {key: weight.detach() for part in parts for key, weight in part.items()},
            "empty": empty,
            "state": state,
            "loaded": other.state_dict(),
            "held": held,
            "gradients": [weight.grad for part in parts for weight in part.values()],
        }
    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(together, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("layout", ["ep", "dp"])
def test_every_element_moves_as_in_one_process(two: list[dict[str, Any]], layout: str) -> None:
    weights, state = stepped()
    for rank, process in enumerate(result[layout] for result in two):
        expected = weights | {"experts": weights["experts"].chunk(2)[rank] if layout == "ep" else weights["experts"]}
        for name, weight in expected.items():
            torch.testing.assert_close(process["weights"][name], weight, **ROUNDING)
        same(process["state"], state)
        same(process["loaded"], state)
        assert process["empty"] == {"state": {}, "param_groups": plain(parts_of(EXPERTS)).state_dict()["param_groups"]}
        assert process["gradients"] == [None] * 3


@pytest.mark.parametrize("layout", ["ep", "dp"])
def test_a_process_holds_half_of_the_state(two: list[dict[str, Any]], layout: str) -> None:
    """11 dense elements are 6 and 5; of 12 of experts, half are here in either layout."""
    assert [result[layout]["held"] for result in two] == [6 + 6, 5 + 6]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_moments_follow_their_elements_to_other_numbers_of_processes(size: int) -> None:
    """Weights of 5 and 6 elements with moments 0 to 10: a shift after the first would be seen."""
    weights = [nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2, 3))]
    moments = torch.arange(11.0).split([5, 6])
    state = {
        number: {"step": torch.tensor(7.0), "exp_avg": moment.view_as(weight), "exp_avg_sq": moment.view_as(weight)}
        for number, (weight, moment) in enumerate(zip(weights, moments, strict=True))
    }
    held = []
    for rank in range(size):
        place = {"get_rank": lambda *_, rank=rank: rank, "get_world_size": lambda *_: size}
        with mock.patch.multiple(dist, **place):
            mesh = Mesh(0, rank, 0, *[mock.sentinel.group] * 4)
            whole = torch.optim.AdamW(weights)
            optimizer = ZeroAdamW(whole, [["a", "b"]], Parts({"a": weights[0], "b": weights[1]}, {}), mesh)
            optimizer.load_state_dict({"state": state, "param_groups": whole.state_dict()["param_groups"]})
        for piece in optimizer.pieces:
            assert piece.elements.data_ptr() == weights[piece.number].data_ptr() + 4 * piece.first
            assert optimizer.state[piece.elements]["step"] == 7
            held.append(optimizer.state[piece.elements]["exp_avg"])
    assert torch.cat(held).tolist() == list(range(11))
