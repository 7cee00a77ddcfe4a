"""Turning a model of one process into one of several."""

from typing import Any, cast

from dsv2.distributed.deferred import Queue
from dsv2.distributed.dropping import WholeBatch
from dsv2.distributed.exchange import Meter
from dsv2.distributed.expert_parallel import DISPATCHERS
from dsv2.distributed.mesh import Dispatch, Mesh
from dsv2.distributed.shards import keep_own_experts
from dsv2.models.ops import Ops
from dsv2.models.transformer import Transformer


def distribute(model: Transformer, mesh: Mesh, dispatch: Dispatch, queue: Queue | None = None) -> Meter:
    """Keep this process's experts and replace the model's ops by those of the mesh; return what counts the bytes.

    A model whose experts are not shared keeps its dispatcher. With a `queue`, gradients of weights wait there.
    """
    meter, moe = Meter(), model.config.moe
    base = model.ops if queue is None else queue.ops(model.ops)
    ops = base._replace(drop=WholeBatch(mesh.shares).drop)
    if moe is not None and mesh.num_expert_shares > 1:
        dispatcher = DISPATCHERS[dispatch](mesh.experts, moe.num_experts)
        ops, meter = dispatcher.ops(ops), dispatcher.meter
        keep_own_experts(model, mesh.experts)
    for module in model.modules():
        if isinstance(getattr(module, "ops", None), Ops):
            cast(Any, module).ops = ops
    return meter
