"""ZeRO-1: the optimiser's state lies in equal parts on the processes that hold the same weights.

Every process has whole weights and averaged gradients, updates its part of the weights and gets the others' parts.
Dense weights are shared out among all shares of a step, experts among the replicas that hold them. AdamW treats
elements one by one, so that the result is that of one process.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv2.distributed.mesh import Mesh
from dsv2.distributed.shards import Parts, all_shares, own_share

MOMENTS = ("exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """The elements of a weight that this process updates; its tensor shares the weight's memory."""

    number: int  # of the weight, in the order of one process's optimiser
    group: int  # of the optimiser's parameter groups
    first: int
    last: int  # exclusive
    elements: nn.Parameter


class Flat(NamedTuple):
    """Weights that the same processes hold, as one vector of which each process owns an equal part."""

    weights: dict[int, nn.Parameter]  # by number
    pieces: list[Piece]
    owners: dist.ProcessGroup
    part: int  # elements per process; the last parts may be shorter, or empty
    experts: dist.ProcessGroup | None  # that hold the other experts, if these are of some

    @classmethod
    def of(
        cls,
        weights: dict[int, nn.Parameter],
        group_of: Sequence[int],
        owners: dist.ProcessGroup,
        experts: dist.ProcessGroup | None,
    ) -> "Flat":
        total = sum(weight.numel() for weight in weights.values())
        part = -(-total // dist.get_world_size(owners))
        low = part * dist.get_rank(owners)
        pieces, start = [], 0
        for number, weight in weights.items():
            first = min(max(low - start, 0), weight.numel())
            last = min(max(low + part - start, 0), weight.numel())
            if first < last:
                elements = nn.Parameter(weight.detach().view(-1)[first:last])
                pieces.append(Piece(number, group_of[number], first, last, elements))
            start += weight.numel()
        return cls(weights, pieces, owners, part, experts)

    def gather(self, parts: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return a tensor in the shape of each weight from what every process has of its pieces, in their order."""
        if not self.weights:
            return {}
        like = next(iter(self.weights.values()))
        own = torch.zeros(self.part, dtype=like.dtype, device=like.device)
        if parts:
            joined = torch.cat([part.flatten() for part in parts])
            own[: len(joined)] = joined
        sizes = [weight.numel() for weight in self.weights.values()]
        split = all_shares(own, self.owners)[: sum(sizes)].split(sizes)
        return {i: v.view_as(w) for (i, w), v in zip(self.weights.items(), split, strict=True)}

    def whole(self, own: Tensor) -> Tensor:
        """Return a tensor in the shape that its weight has in one process, from all processes that have a part."""
        return own if self.experts is None else all_shares(own, self.experts)

    def own(self, value: Tensor) -> Tensor:
        """Return what of a tensor in one process's shape belongs to the weight here."""
        return value if self.experts is None else own_share(value, self.experts)


class ZeroAdamW(torch.optim.AdamW):
    """AdamW over the pieces of this process, with the state dict of AdamW in one process.

    `state_dict` is collective: all processes call it, and all get the whole.
    """

    def __init__(self, plain: torch.optim.AdamW, names: Sequence[Sequence[str]], parts: Parts, mesh: Mesh) -> None:
        """Take over weights and hyperparameters of an optimiser that has not stepped yet.

        `names` are those of the weights in each parameter group of one process, some of which may lie elsewhere.
        """
        numbers = {name: number for number, name in enumerate(name for group in names for name in group)}
        group_of = [number for number, group in enumerate(names) for _ in group]
        dense, own_experts = (
            {numbers[name]: part[name] for name in sorted(part, key=numbers.__getitem__)} for part in parts
        )
        self.flats = [
            Flat.of(dense, group_of, mesh.shares, None),
            Flat.of(own_experts, group_of, mesh.replicas, mesh.experts),
        ]
        self.pieces = [piece for flat in self.flats for piece in flat.pieces]
        self.of_group = [[p for p in self.pieces if p.group == number] for number in range(len(plain.param_groups))]
        groups = [
            {key: value for key, value in group.items() if key != "params"} | {"params": [p.elements for p in pieces]}
            for group, pieces in zip(plain.param_groups, self.of_group, strict=True)
        ]
        self.weights, self.mesh = dense | own_experts, mesh
        self.sizes = [len(group) for group in names]
        super().__init__(groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights.values():
            if set_to_none or weight.grad is None:
                weight.grad = None
            else:
                weight.grad.zero_()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the own pieces by the weights' averaged gradients, and get the others'. All processes call this."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for piece in self.pieces:
            gradient = self.weights[piece.number].grad
            piece.elements.grad = None if gradient is None else gradient.flatten()[piece.first : piece.last]
        super().step()
        with torch.no_grad():
            for flat in self.flats:
                for index, value in flat.gather([piece.elements.detach() for piece in flat.pieces]).items():
                    self.weights[index].copy_(value)
        return loss

    def state_dict(self) -> dict[str, Any]:
        own = super().state_dict()
        steps = torch.tensor([float(state["step"]) for state in self.state.values()] or [0.0]).max()
        steps = steps.to(next(iter(self.weights.values())).device)
        dist.all_reduce(steps, dist.ReduceOp.MAX, group=self.mesh.shares)
        first, groups = 0, []
        for group, whole in zip(own["param_groups"], self.sizes, strict=True):
            groups.append(group | {"params": list(range(first, first + whole))})
            first += whole
        if not steps:
            return {"state": {}, "param_groups": groups}
        state: dict[int, dict[str, Tensor]] = {number: {"step": steps.cpu().clone()} for number in self.weights}
        for flat in self.flats:
            for moment in MOMENTS:
                parts = [self.state[piece.elements][moment] for piece in flat.pieces]
                for index, value in flat.gather(parts).items():
                    state[index][moment] = flat.whole(value)
        return {"state": self._of_all_stages(state), "param_groups": groups}

    def _of_all_stages(self, state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Return the states of all weights, from those of the weights of each stage."""
        stages: list[Any] = [None] * self.mesh.num_stages
        dist.all_gather_object(stages, state, group=self.mesh.stages)
        return dict(sorted((number, moments) for stage in stages for number, moments in stage.items()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's part of the state of one process's AdamW."""
        places = {id(piece.elements): n for n, piece in enumerate(p for pieces in self.of_group for p in pieces)}
        state = {}
        for flat in self.flats:
            for piece in flat.pieces:
                whole = state_dict["state"].get(piece.number)
                if whole is not None:
                    moments = {name: flat.own(whole[name]).flatten()[piece.first : piece.last] for name in MOMENTS}
                    state[places[id(piece.elements)]] = {"step": whole["step"], **moments}
        groups = [
            group | {"params": [places[id(piece.elements)] for piece in pieces]}
            for group, pieces in zip(state_dict["param_groups"], self.of_group, strict=True)
        ]
        super().load_state_dict({"state": state, "param_groups": groups})
