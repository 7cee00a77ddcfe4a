"""Mixed precision: bfloat16 or FP8 in the functions that multiply activations by weights, and nowhere else.

Weights, residual stream, norms, router, softmax and losses stay in float32. FP8 is for inference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels import fp8
from dsv2.kernels.cross_entropy import head_nats
from dsv2.kernels.experts import routed_experts
from dsv2.kernels.grouped import grouped
from dsv2.models.ops import PLAIN, Ops


def _linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x.to(torch.bfloat16), w.to(torch.bfloat16))


def _grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
    return grouped(rows.to(torch.bfloat16), counts, w.to(torch.bfloat16))


def _experts(x: Tensor, experts: Tensor, gates: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    low = (part.to(torch.bfloat16) for part in (w_gate_up, w_down))
    return routed_experts(x.to(torch.bfloat16), experts, gates, *low)


def _head(x: Tensor, w: Tensor, targets: Tensor) -> Tensor:
    return head_nats(x.to(torch.bfloat16), w.to(torch.bfloat16), targets)


OPS = {
    "fp32": PLAIN,
    "bf16": Ops(linear=_linear, grouped=_grouped, experts=_experts, head=_head),
    "fp8": Ops(linear=fp8.linear, grouped=fp8.grouped),
}
