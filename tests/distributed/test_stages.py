"""Stages of a model against its account and against every way of cutting it."""

from itertools import combinations

import pytest

import dsv2
from dsv2.accounting.memory import training_memory
from dsv2.config import ConfigError
from dsv2.distributed.stages import partition, stages_of


@pytest.mark.parametrize("num_parts", [1, 2, 3, 6])
@pytest.mark.parametrize("costs", [(1, 1, 1, 1, 1, 1), (5, 1, 1, 1, 1, 9), (3, 0, 2, 7, 1, 4)])
def test_no_cut_has_a_smaller_largest_part(costs, num_parts):
    parts = partition(costs, num_parts)
    assert [i for part in parts for i in part] == list(range(6))
    assert len(parts) == num_parts
    assert all(len(part) for part in parts)
    best = min(
        max(sum(costs[a:b]) for a, b in zip((0, *cuts), (*cuts, 6), strict=True))
        for cuts in combinations(range(1, 6), num_parts - 1)
    )
    assert max(sum(costs[i] for i in part) for part in parts) == best


@pytest.mark.parametrize("preset", ["v2", "v2_lite", "deepseek_7b", "tiny"])
def test_stages_add_up_to_the_account(preset):
    model = dsv2.load([f"model={preset}"]).model
    stages = stages_of(model, min(4, model.num_layers), context=1024)
    assert sum(stage.flops for stage in stages) == dsv2.account(model, context=1024).flops_per_token
    for stage in stages:  # gradients of weights need no attention scores, those of inputs need them twice
        scores = len(stage.layers) * model.attention.score_flops(1024)
        assert stage.forward - stage.backward_weight == stage.backward_input - stage.forward == scores


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute_layers", [0, 3])
def test_activations_add_up_to_the_memory_of_training(precision, recompute_layers):
    model = dsv2.load(["model=v2_lite"]).model
    given = {"precision": precision, "recompute_layers": recompute_layers}
    stages = stages_of(model, 4, context=512, **given)
    memory = training_memory(model, batch=2, length=512, **given)
    others = {"embedding", "rotations", "weights in bfloat16"}
    expected = sum(row.bytes for row in memory.activations if row.part not in others)
    assert sum(stage.activations for stage in stages) * 1024 == expected


def test_layers_computed_again_run_twice():
    model = dsv2.load(["model=v2_lite"]).model
    (plain,), (again,) = (stages_of(model, 1, recompute_layers=layers) for layers in (0, model.num_layers))
    head = 2 * model.vocab_size * model.dim
    assert again.backward_input - plain.backward_input == plain.forward - head
    assert (again.forward, again.backward_weight) == (plain.forward, plain.backward_weight)


def test_more_stages_than_layers():
    with pytest.raises(ConfigError, match="stages=61 is not valid: 1 to the 60 layers"):
        stages_of(dsv2.load(["model=v2"]).model, 61)
