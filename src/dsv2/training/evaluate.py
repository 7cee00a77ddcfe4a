"""Loss, bits per byte and expert load of a model over a whole validation set."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.analysis.routing import Counts, count, mean_measures, measure
from dsv2.data.source import NOT_SCORED, Batch, bits_per_byte, count_bytes
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer


@torch.no_grad()
def evaluate(model: Transformer, batch: Batch, *, batch_size: int, token_bytes: np.ndarray | None) -> dict[str, float]:
    """`val/loss` in nats a scored token, `val/bpb` where tokens stand for bytes, and `val/routing/*`.

    Takes all validation sequences as one batch and works through it `batch_size` at a time, in evaluation mode; the
    model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    nats, scored, counts = 0.0, 0, list[Counts]()
    moe = model.config.ffn
    for inputs, targets in _batches(batch, batch_size, model.embedding.device):
        output = model(inputs)
        losses = F.cross_entropy(
            output.logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_SCORED, reduction="sum"
        )
        nats += losses.double().item()
        scored += int((targets != NOT_SCORED).sum())
        if isinstance(moe, MoE.Config):
            new = [count(routing, num_devices=moe.num_devices) for routing in output.routings]
            counts = [old + more for old, more in zip(counts, new, strict=True)] if counts else new
    model.train(was_training)
    result = {"val/loss": nats / scored}
    if token_bytes is not None:
        result["val/bpb"] = bits_per_byte(nats, count_bytes(batch.targets, token_bytes))
    routing = mean_measures([measure(layer) for layer in counts])
    return result | {f"val/{name}": value for name, value in routing.items()}


def _batches(batch: Batch, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(batch.inputs), size):
        yield batch.inputs[first : first + size].to(device), batch.targets[first : first + size].to(device)
