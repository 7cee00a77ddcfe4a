"""Checkpoints of a mesh are those of one process; tests/training/test_launch.py has them from several."""

import torch

import dsv2
from dsv2.distributed.mesh import Mesh
from dsv2.training.module import Module
from dsv2.training.strategy import MeshStrategy
from tests.references import ranks


def test_the_state_of_a_mesh_of_one_is_that_of_the_module(quick: list[str]) -> None:
    run = dsv2.load(quick)
    with ranks.group_of_one():
        strategy, module = MeshStrategy(Mesh.Config().build()), Module(run)
        strategy.connect(module)
        strategy.configure_ddp()
        assert strategy.model is module  # not wrapped
        state = strategy.lightning_module_state_dict()
        expected = module.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], weight) for name, weight in expected.items())
        changed = {name: weight + 1 for name, weight in state.items()}
        strategy.load_model_state_dict({"state_dict": changed})
        assert all(torch.equal(weight, changed[name]) for name, weight in module.state_dict().items())
