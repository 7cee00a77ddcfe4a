"""What a process of a pipeline holds, and the whole model for a while."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import dsv2
from dsv2.distributed.slices import Slices, Stage, stage_ranks
from tests.references import ranks


def held(words: list[str]) -> dict[str, Any]:
    """Names of the own weights, those of the whole model with their values, and the own ones again."""
    model = dsv2.load(words).model.build(seed=dist.get_rank())  # each with other weights
    whole_names = list(model.state_dict())
    stages = [Stage(0, range(1), 1), Stage(1, range(1, 2), 0)]
    slices = Slices(model, stages, dist.new_group())
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with slices.complete():
        state: dict[str, Tensor] = {name: weight.clone() for name, weight in model.state_dict().items()}
        logits = model(torch.arange(8).view(2, 4)).logits.detach()
        trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    after = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    assert before == after
    assert list(state) == whole_names
    return {"own": list(before), "state": state, "logits": logits, "trainable": trainable}


def test_a_process_has_its_layers_and_gets_the_others_for_a_while(
    quick: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = ranks.run(held, 2, tmp_path_factory.mktemp("ranks"), quick)
    assert all(name.startswith(("layers.1.", "norm.", "head")) for name in first["own"])
    assert all(name.startswith(("layers.0.", "embedding")) for name in second["own"])
    assert sorted(first["own"] + second["own"]) == sorted(first["state"])
    built = [dsv2.load(quick).model.build(seed=seed).state_dict() for seed in (0, 1)]
    for name, weight in first["state"].items():
        assert torch.equal(weight, built[1 if name in second["own"] else 0][name])
        assert torch.equal(weight, second["state"][name])
    assert torch.equal(first["logits"], second["logits"])
    assert first["trainable"] == first["own"]


def test_stages_go_round_or_back() -> None:
    assert stage_ranks(4, 2, v_shaped=False) == [0, 1, 0, 1]
    assert stage_ranks(6, 3, v_shaped=True) == [0, 1, 2, 2, 1, 0]
