"""The slice of a model that a process of a pipeline holds, and the whole model for a while, where it is needed.

Stages are consecutive layers; the first has the embedding too, the last the final norm and the head. A process may have
several stages. Validation and checkpoints need the whole: every process then gets the parts of the others, and lets go
of them afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv2.models.transformer import Transformer


class Stage(NamedTuple):
    number: int
    layers: range
    rank: int  # of the pipeline, that runs it


def stage_ranks(num_stages: int, num_ranks: int, *, v_shaped: bool) -> list[int]:
    """Return the rank of each stage: round after round or, in the shape of a V, back on the way that it went."""
    if v_shaped:
        assert num_stages == 2 * num_ranks
        return [*range(num_ranks), *reversed(range(num_ranks))]
    return [stage % num_ranks for stage in range(num_stages)]


class Unit(NamedTuple):
    """A part of the model that is here or elsewhere as a whole."""

    rank: int  # of the pipeline, that holds it
    holder: nn.Module  # with the tensors
    attach: Callable[[], None]  # puts it in its place in the model
    detach: Callable[[], None]  # takes it away


class Slices:
    """The parts of a model that this process of a pipeline holds, and shells of those that it does not."""

    def __init__(self, model: Transformer, stages: Sequence[Stage], group: dist.ProcessGroup) -> None:
        """Let go of what other processes hold. The model has all weights yet, and embedding and head are not tied."""
        assert model.head is not None, "tied weights would be in two stages"
        self.group, self.rank = group, dist.get_rank(group)
        self.units = [_parameter(model, "embedding", stages[0].rank)]
        for stage in stages:
            self.units += [_layer(model, index, stage.rank) for index in stage.layers]
        self.units += [_module(model, "norm", stages[-1].rank), _parameter(model, "head", stages[-1].rank)]
        for unit in self._elsewhere:
            _empty(unit.holder)
            unit.detach()

    @property
    def _elsewhere(self) -> list[Unit]:
        return [unit for unit in self.units if unit.rank != self.rank]

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Hold the whole model within the context. All processes of the pipeline enter it."""
        device = next(t.device for unit in self.units for t in unit.holder.state_dict().values() if not t.is_meta)
        for unit in self.units:
            source = dist.get_global_rank(self.group, unit.rank)
            for module in unit.holder.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, tensor in tensors.items():
                        if tensor is None:
                            continue
                        here = unit.rank == self.rank
                        value = tensor.detach() if here else torch.empty_like(tensor, device=device)
                        dist.broadcast(value, source, group=self.group)
                        if not here:
                            cast(Any, tensors)[name] = _like(tensor, value)
            unit.attach()
        try:
            yield
        finally:
            for unit in self._elsewhere:
                _empty(unit.holder)
                unit.detach()


def _like(old: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value


def _empty(module: nn.Module) -> None:
    """Keep nothing but the shapes of a module's tensors."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    cast(Any, tensors)[name] = _like(tensor, torch.empty_like(tensor, device="meta"))


def _layer(model: Transformer, index: int, rank: int) -> Unit:
    block, nothing = model.layers[index], nn.Identity()

    def put(module: nn.Module) -> Callable[[], None]:
        return lambda: model.layers.__setitem__(index, module)

    return Unit(rank, block, put(block), put(nothing))


def _module(model: Transformer, name: str, rank: int) -> Unit:
    module, nothing = getattr(model, name), nn.Identity()
    return Unit(rank, module, lambda: setattr(model, name, module), lambda: setattr(model, name, nothing))


def _parameter(model: Transformer, name: str, rank: int) -> Unit:
    holder = nn.Module()
    holder.register_parameter(name, getattr(model, name))
    attach: Callable[[], None] = lambda: setattr(model, name, getattr(holder, name))  # noqa: E731
    return Unit(rank, holder, attach, lambda: setattr(model, name, None))
