"""Expert parallelism: the routed experts of a layer lie on several processes, between which tokens travel.

A process holds a consecutive share of the experts and has tokens of its own. The dispatchers here take the place of the
local one through `Ops`, so that models know nothing of processes. Section 3.1.3 of the report; Eq. 29 counts what
`OncePerDevice` sends.

B batch, T tokens, d model width, E routed experts, K experts per token, R processes, N token-expert pairs that are not
dropped, m rows received.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.distributed.exchange import Exchange, Meter
from dsv2.distributed.mesh import Dispatch
from dsv2.distributed.traffic import pairs_per_device
from dsv2.kernels.permute import gather_rows, sort_by_expert, weighted_sum
from dsv2.models.moe.router import Routing, token_devices
from dsv2.models.ops import Ops

COUNT, PLACE = 8, 4  # bytes of a count, and of the place of a row


class Choices(NamedTuple):
    """What each token chose, sorted by the chosen: choices that do not count come last, as one row of zeros."""

    order: Tensor  # (N,) or, if some do not count, (N + 1,): choices sorted by what was chosen
    inverse: Tensor  # (tokens x choices,) place of each choice in that order
    counts: Tensor  # (number to choose from,)
    num: int  # N, choices that count

    @classmethod
    def of(cls, chosen: Tensor, num_chosen: int, left_out: Tensor | None) -> "Choices":
        """Sort what tokens chose (tokens, choices) int64, but for those that are `left_out`, bool of that shape."""
        flat = chosen.flatten() if left_out is None else chosen.masked_fill(left_out, num_chosen).flatten()
        order, inverse, counts = sort_by_expert(flat, num_chosen + 1)
        num = int(counts[:-1].sum())
        return cls(order[: num + 1], inverse.clamp(max=num), counts[:-1], num)

    def gather(self, x: Tensor) -> Tensor:
        """Return a row of x (tokens, d) per choice that counts: (N, d)."""
        per_token = len(self.inverse) // len(x)
        return gather_rows(x, self.order, self.inverse, per_token)[: self.num]

    def sum(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Sum rows (N, d) times weights (tokens, choices) per token: (tokens, d)."""
        if len(self.order) > self.num:
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return weighted_sum(rows, weights.to(rows.dtype), self.order, self.inverse)


class Arriving(Tensor):
    """Stands for rows that are on their way: it has their shape and nothing else, so that no other op can read it."""

    arrive: Callable[[], Tensor]  # waits for the rows and returns them

    @staticmethod
    def of(num_rows: int, like: Tensor, arrive: Callable[[], Tensor]) -> "Arriving":
        shape = (num_rows, like.shape[-1])
        rows = torch.empty(shape, dtype=like.dtype, device="meta").as_subclass(Arriving)
        rows.arrive = arrive
        return rows


class ExpertParallel(ABC):
    """A dispatcher to experts on the processes of a group; `models.moe.dispatch.Dispatcher` documents its methods.

    The rows that `dispatch` returns have not arrived: `grouped`, the first to need them, waits for them. Shared
    experts, which are computed before, overlap with the all-to-all, and so do their gradients in backward. Dropped
    pairs are not sent. All processes of the group must call the same methods in the same order.
    """

    def __init__(self, group: dist.ProcessGroup, num_experts: int) -> None:
        self.group, self.num_experts = group, num_experts
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        if num_experts % self.size:
            raise ConfigError("mesh.ep", self.size, f"a divisor of the number of routed experts, {num_experts}")
        self.meter = Meter()

    def ops(self, base: Ops) -> Ops:
        """Return `base` with this dispatcher."""

        def grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
            return base.grouped(rows.arrive() if isinstance(rows, Arriving) else rows, counts, w)

        return base._replace(dispatcher=self, grouped=grouped, experts=None)

    @abstractmethod
    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Any]:
        """Send tokens x (B, T, d) away."""

    @abstractmethod
    def combine(self, rows: Tensor, ticket: Any) -> Tensor:
        """Send the experts' outputs back and sum them per token: (B, T, d)."""

    def _swap(self, table: Tensor) -> Tensor:
        """Send row r of an integer table (R, n) to process r; return what processes sent here, (R, n)."""
        received = torch.empty_like(table)
        dist.all_to_all_single(received, table.contiguous(), group=self.group)
        self.meter.extra += (self.size - 1) * table.shape[1] * table.element_size()
        return received

    def _experts_of(self, counts: Tensor) -> Tensor:
        """Return the own expert, from 0, of each received pair, from the counts (R, E / R) of each process."""
        own = torch.arange(counts.shape[1], device=counts.device)
        return own.repeat(self.size).repeat_interleave(counts.flatten())


class PairTicket(NamedTuple):
    choices: Choices
    gates: Tensor  # (B, T, K) float32, 0 for dropped pairs
    exchange: Exchange
    order: Tensor  # (m,) received rows sorted by expert
    inverse: Tensor  # (m,)


class AllToAll(ExpertParallel):
    """Sends a token once per expert that it chose, and the output of each back."""

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, PairTicket]:
        dropped = None if routing.dropped is None else routing.dropped.flatten(0, 1)
        choices = Choices.of(routing.experts.flatten(0, 1), self.num_experts, dropped)
        counts = choices.counts.view(self.size, -1)
        received = self._swap(counts)
        exchange = Exchange(self.group, counts.sum(1).tolist(), received.sum(1).tolist(), self.meter)
        travelling = exchange.depart(choices.gather(x.flatten(0, 1)))
        order, inverse, own_counts = sort_by_expert(self._experts_of(received), received.shape[1])

        def arrive() -> Tensor:
            return gather_rows(exchange.arrive(travelling), order, inverse, 1)

        rows = Arriving.of(len(order), x, arrive)
        return rows, own_counts, PairTicket(choices, routing.live_gates, exchange, order, inverse)

    def combine(self, rows: Tensor, ticket: PairTicket) -> Tensor:
        back = ticket.exchange.reversed()
        returned = back.arrive(back.depart(gather_rows(rows, ticket.inverse, ticket.order, 1)))
        y = ticket.choices.sum(returned, ticket.gates.flatten(0, 1))
        return y.unflatten(0, ticket.gates.shape[:2])


class TokenTicket(NamedTuple):
    choices: Choices  # of processes
    sent: Tensor  # (B T, R) bool
    exchange: Exchange
    places: Tensor  # (pairs received,) received row of each pair, sorted by expert
    gates: Callable[[], Tensor]  # waits for the gates (pairs received,) and returns them in that order
    shape: torch.Size  # of the tokens, (B, T, d)


class OncePerDevice(ExpertParallel):
    """Sends a token once per process that has experts which it chose, whatever their number.

    Gates travel along: outputs are weighted and summed there, and one row per token goes back.
    """

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, TokenTicket]:
        experts, dropped = routing.experts.flatten(0, 1), routing.dropped
        left_out = None if dropped is None else dropped.flatten(0, 1)
        share = self.num_experts // self.size
        sent = self._processes(experts, left_out)
        processes = torch.arange(self.size, device=x.device).expand_as(sent)
        rows_sent = Choices.of(processes, self.size, ~sent)
        pairs = Choices.of(experts, self.num_experts, left_out)
        counts = pairs.counts.view(self.size, share)
        table = self._swap(torch.cat([rows_sent.counts[:, None], counts], dim=1))
        num_rows, theirs = table[:, 0], table[:, 1:]
        exchange = Exchange(self.group, rows_sent.counts.tolist(), num_rows.tolist(), self.meter)
        travelling = exchange.depart(rows_sent.gather(x.flatten(0, 1)))

        leaving = pairs.order[: pairs.num]
        by_pair = Exchange(self.group, counts.sum(1).tolist(), theirs.sum(1).tolist(), self.meter, "extra")
        gates = by_pair.depart(routing.gates.flatten()[leaving])
        process = experts.flatten()[leaving] // share
        first = rows_sent.counts.cumsum(0) - rows_sent.counts  # row of each process
        place = rows_sent.inverse.view_as(sent)[leaving // experts.shape[1], process] - first[process]
        by_place = Exchange(self.group, by_pair.sent, by_pair.received, self.meter, "extra")
        place = by_place.arrive(by_place.depart(place.int()))
        place = place + (num_rows.cumsum(0) - num_rows).repeat_interleave(theirs.sum(1))
        order, _, own_counts = sort_by_expert(self._experts_of(theirs), share)
        places = place[order]

        def arrive() -> Tensor:
            return F.embedding(places, exchange.arrive(travelling))

        def gates_arrive() -> Tensor:
            return by_pair.arrive(gates)[order]

        ticket = TokenTicket(rows_sent, sent, exchange, places, gates_arrive, x.shape)
        return Arriving.of(len(places), x, arrive), own_counts, ticket

    def combine(self, rows: Tensor, ticket: TokenTicket) -> Tensor:
        back = ticket.exchange.reversed()
        weighted = rows * ticket.gates().to(rows.dtype)[:, None]
        summed = weighted.new_zeros(sum(back.sent), rows.shape[1]).index_add(0, ticket.places, weighted)
        returned = back.arrive(back.depart(summed))
        return ticket.choices.sum(returned, ticket.sent).view(ticket.shape)

    def _processes(self, experts: Tensor, left_out: Tensor | None) -> Tensor:
        """Return (tokens, R) bool, the processes that each token is sent to, from experts (tokens, K)."""
        if left_out is None:
            return token_devices(experts, self.num_experts, self.size)
        nowhere = self.num_experts  # an expert of one more process
        share = self.num_experts // self.size
        more = token_devices(experts.masked_fill(left_out, nowhere), nowhere + share, self.size + 1)
        return more[:, : self.size]


DISPATCHERS: dict[Dispatch, type[ExpertParallel]] = {"once_per_device": OncePerDevice, "all_to_all": AllToAll}


def predicted_bytes(
    routings: Sequence[Routing], *, dim: int, element_bytes: int, once_per_device: bool, backward: bool = True
) -> list[Meter]:
    """Return what each process sends for one layer, from the routing of the tokens that each of them has.

    Rows go to the experts and back, and in backward their gradients take the same ways. Counts of 8 bytes are sent by
    both dispatchers; a place of 4 bytes and a gate per pair, and in backward the gate's gradient, by `OncePerDevice`.
    """
    size, num_experts = len(routings), routings[0].affinities.shape[-1]
    pairs = []  # (R, R), from and to
    rows = []
    for routing in routings:
        kept = torch.ones_like(routing.experts, dtype=torch.bool) if routing.dropped is None else ~routing.dropped
        reached = pairs_per_device(routing.experts.flatten(0, 1), kept.flatten(0, 1), num_experts, size)
        pairs.append(reached.sum(0))
        rows.append((reached > 0).sum(0) if once_per_device else reached.sum(0))
    elsewhere = 1 - torch.eye(size, dtype=torch.int64)
    away, pairs_away = torch.stack(rows).cpu() * elsewhere, torch.stack(pairs).cpu() * elsewhere
    crossings = (away.sum(1) + away.sum(0)) * (2 if backward else 1)
    extra = torch.full((size,), (size - 1) * (num_experts // size + once_per_device) * COUNT)
    if once_per_device:
        gate = routings[0].gates.element_size()
        extra = extra + pairs_away.sum(1) * (PLACE + gate) + (pairs_away.sum(0) * gate if backward else 0)
    return [Meter(r * dim * element_bytes, e) for r, e in zip(crossings.tolist(), extra.tolist(), strict=True)]
