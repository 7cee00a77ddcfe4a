"""What becomes of a model that several processes train."""

from unittest import mock

import dsv2
from dsv2.distributed.exchange import Meter
from dsv2.distributed.expert_parallel import DISPATCHERS
from dsv2.distributed.mesh import Mesh
from dsv2.distributed.parallel import distribute
from dsv2.models.ops import PLAIN, Ops
from tests.references import ranks


def test_a_model_whose_experts_are_not_shared_keeps_its_dispatcher(quick: list[str]) -> None:
    model = dsv2.load(quick).model.build()
    before = {name: weight.shape for name, weight in model.named_parameters()}
    with ranks.group_of_one():
        meter = distribute(model, Mesh.Config().build(), "all_to_all")
    assert meter == Meter()
    assert model.ops.dispatcher is PLAIN.dispatcher
    assert model.ops.drop is not None
    assert {name: weight.shape for name, weight in model.named_parameters()} == before


def test_every_module_gets_the_ops_of_the_mesh(quick: list[str]) -> None:
    """As one of two processes, as far as this can be without the other."""
    model = dsv2.load(quick).model.build()
    with ranks.group_of_one(), mock.patch("torch.distributed.get_world_size", return_value=2):
        mesh = Mesh(0, 0, 0, *[mock.sentinel.group] * 4)
        with mock.patch("torch.distributed.get_rank", return_value=1):
            meter = distribute(model, mesh, "once_per_device")
    found = [module.ops for module in model.modules() if isinstance(getattr(module, "ops", None), Ops)]
    assert len(found) > 5
    (ops,) = {id(one): one for one in found}.values()
    assert type(ops.dispatcher) is DISPATCHERS["once_per_device"]
    assert ops.dispatcher.meter is meter
    assert ops.experts is None
    assert model.layers[1].ffn.experts.w_down.shape[0] == 4
