"""Which weights a process holds: all dense ones, and its consecutive share of every layer's routed experts.

E routed experts, R processes that hold them between them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from dsv2.models.moe.experts import Experts


class Parts(NamedTuple):
    """The weights of a process by their names, according to who else has them."""

    dense: dict[str, nn.Parameter]  # the same in all shares
    experts: dict[str, nn.Parameter]  # the same in replicas alone

    @classmethod
    def of(cls, model: nn.Module) -> "Parts":
        names = expert_names(model)
        weights = dict(model.named_parameters())
        return cls(
            {name: weight for name, weight in weights.items() if name not in names},
            {name: weight for name, weight in weights.items() if name in names},
        )


def expert_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the routed experts' weights, whose first dim is that of the experts."""
    return frozenset(
        f"{name}.{weight}"
        for name, module in model.named_modules()
        if isinstance(module, Experts)
        for weight, _ in module.named_parameters()
    )


def keep_own_experts(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Replace the routed experts of a whole model by the share of this process of the group."""
    for module in model.modules():
        if isinstance(module, Experts):
            for name, weight in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(own_share(weight.detach(), group).clone()))


def own_share(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this process's share (n / R, ...) of a tensor (n, ...), such as one of all experts."""
    return whole.chunk(dist.get_world_size(group))[dist.get_rank(group)]


def all_shares(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensor (n, ...) of which every process has an equal share (n / R, ...); in all of them."""
    size = dist.get_world_size(group)
    whole = own.new_empty(size * own.shape[0], *own.shape[1:])
    dist.all_gather(list(whole.chunk(size)), own.detach().contiguous(), group=group)
    return whole


def whole_state(model: nn.Module, group: dist.ProcessGroup, prefix: str = "") -> dict[str, Tensor]:
    """Return the state dict that the model has in one process; all processes of the group call this."""
    names = expert_names(model)
    state = model.state_dict()
    return {prefix + name: all_shares(w, group) if name in names else w for name, w in state.items()}


def own_state(state: Mapping[str, Any], model: nn.Module, group: dist.ProcessGroup, prefix: str = "") -> dict[str, Any]:
    """Return this process's part of a state dict from one process."""
    names = {prefix + name for name in expert_names(model)}
    return {name: own_share(value, group) if name in names else value for name, value in state.items()}
