"""Operations passed to every module: products of activations and weights, the dispatcher, and ops of several of them.

N rows, I input width, O output width, E experts.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from dsv2.kernels.cross_entropy import head_nats
from dsv2.kernels.dispatch import LOCAL
from dsv2.kernels.experts import routed_experts
from dsv2.kernels.grouped import grouped
from dsv2.kernels.linear import linear

if TYPE_CHECKING:
    from dsv2.models.moe.dispatch import Dispatcher


class Ops(NamedTuple):
    linear: Callable[[Tensor, Tensor], Tensor] = linear  # x (..., I), w (O, I) -> (..., O)
    grouped: Callable[[Tensor, Tensor, Tensor], Tensor] = grouped  # rows (N, I), counts (E,), w (E, I, O) -> (N, O)
    dispatcher: "Dispatcher" = LOCAL  # sends tokens to the routed experts and back
    # Each may be None: then the dispatcher and `grouped`, or the loss of `linear`'s logits.
    experts: Callable[..., Tensor] | None = None  # `routed_experts`, where the chosen kernels have an op for it
    head: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # `head_nats`
    drop: Callable[..., Tensor] | None = None  # `dropping.drop`, where the budgets are those of more than this batch


PLAIN = Ops(experts=routed_experts, head=head_nats)
