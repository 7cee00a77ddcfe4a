"""Which weights are experts, and whole state dicts to own ones and back."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import dsv2
from dsv2.distributed.shards import Parts, expert_names, keep_own_experts, own_share, own_state, whole_state
from dsv2.models.transformer import Transformer
from tests.references import ranks


@pytest.fixture
def model(quick: list[str]) -> Transformer:
    return dsv2.load(quick).model.build(seed=1)


def as_if(rank: int, size: int) -> Any:
    """Functions that ask for the place of this process are told this one."""
    return mock.patch.multiple(dist, get_rank=lambda *_: rank, get_world_size=lambda *_: size)


def test_experts_are_the_routed_ones(model: Transformer) -> None:
    names = {"layers.1.ffn.experts.w_gate_up", "layers.1.ffn.experts.w_down"}
    assert expert_names(model) == names
    parts = Parts.of(model)
    assert parts.experts.keys() == names
    assert parts.dense.keys() | parts.experts.keys() == dict(model.named_parameters()).keys()
    assert not parts.dense.keys() & parts.experts.keys()
    assert "layers.1.ffn.shared.w_down" in parts.dense


def test_a_process_keeps_consecutive_experts(model: Transformer, quick: list[str]) -> None:
    whole = dsv2.load(quick).model.build(seed=1).state_dict()
    with as_if(1, 4):
        state = own_state(whole, model, mock.sentinel.group)
        keep_own_experts(model, mock.sentinel.group)
        assert own_share(torch.arange(8), mock.sentinel.group).tolist() == [2, 3]
    for name, weight in model.state_dict().items():
        expected = whole[name][2:4] if ".experts." in name else whole[name]
        assert torch.equal(weight, expected)
        assert torch.equal(state[name], expected)
    assert list(dict(model.named_parameters())) == [name for name in whole if name in dict(model.named_parameters())]
    model.load_state_dict(state)


def test_one_process_has_all(model: Transformer) -> None:
    with ranks.group_of_one() as group:
        state = whole_state(model, group, "model.")
        for name, weight in model.state_dict().items():
            assert torch.equal(state[f"model.{name}"], weight)
            assert torch.equal(own_state(state, model, group, "model.")[f"model.{name}"], weight)
