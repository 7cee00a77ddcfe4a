"""Loss, accuracy, bits per byte and expert load of a model over a whole validation set."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from dsv2.data.source import NOT_SCORED, Batch, bits_per_byte, count_bytes
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.moe.dropping import Dropping
from dsv2.models.transformer import Transformer, evaluating
from dsv2.routing.measures import Counts, count, mean_measures, measure, without_padding


@torch.no_grad()
def evaluate(
    model: Transformer,
    batch: Batch,
    *,
    batch_size: int,
    token_bytes: np.ndarray | None,
    domains: tuple[str, ...] = (),
    whole_answers: bool = False,
) -> dict[str, float]:
    """Return `val/loss` (nats per scored token), `val/accuracy` (of argmax) and `val/routing/*`.

    Accuracy is the share of scored tokens or, with `whole_answers`, of sequences all of whose scored tokens are right.
    Also `val/bpb` if tokens stand for bytes, and with several domains `val/bpb_<domain>` for each that occurs.

    `batch` holds all validation sequences; they are processed `batch_size` at a time in evaluation mode, and the
    model's mode is restored. A target counts for the domain of its input's document.
    """
    counts = list[Counts]()
    nats = torch.zeros(batch.targets.shape, dtype=torch.float64)  # (B, T), 0 for targets that are not scored
    hits = torch.zeros(batch.targets.shape, dtype=torch.bool)  # (B, T)
    moe = model.config.moe
    with evaluating(model):
        for first in range(0, len(batch.inputs), batch_size):
            part = slice(first, first + batch_size)
            inputs, targets, _, positions = batch.rows(first, batch_size)
            targets = targets.to(model.embedding.device)
            output = model(inputs.to(targets.device), positions=positions)
            logits = output.logits.float()
            nats[part] = token_nats(logits, targets).double().cpu()
            hits[part] = (logits.argmax(-1) == targets).cpu()  # NOT_SCORED is not a token id
            if moe is not None:
                routings = without_padding(output.routings, positions)
                new = [count(routing, num_devices=moe.num_devices) for routing in routings]
                counts = [old + more for old, more in zip(counts, new, strict=True)] if counts else new
    scored = batch.targets != NOT_SCORED
    right = hits.sum(1) == scored.sum(1) if whole_answers else hits[scored]
    result = {"val/loss": nats.sum().item() / int(scored.sum()), "val/accuracy": right.double().mean().item()}
    if token_bytes is not None:
        result["val/bpb"] = bits_per_byte(nats.sum().item(), count_bytes(batch.targets, token_bytes))
        if len(domains) > 1 and batch.domains is not None:
            for number, name in enumerate(domains):
                mask = batch.domains == number
                if num_bytes := count_bytes(batch.targets[mask], token_bytes):
                    result[f"val/bpb_{name}"] = bits_per_byte(nats[mask].sum().item(), num_bytes)
    routing = mean_measures([measure(layer) for layer in counts])
    return result | {f"val/{name}": value for name, value in routing.items()}


@torch.no_grad()
def loss_at_capacity(model: Transformer, batch: Batch, *, batch_size: int) -> float:
    """Return the validation loss (nats per scored token) with token dropping during evaluation (section 2.2.4).

    In each batch of `batch_size` sequences, pairs above the devices' budgets are dropped and no sequence is exempt.
    The capacity factor is that of the model's own dropping, else 1.0. `model` is not changed.
    """
    moe = model.config.moe
    assert moe is not None
    dropping = replace(moe.dropping or Dropping.Config(), exempt_ratio=0.0)
    with torch.device("meta"):
        dropper = replace(model.config, ffn=replace(moe, dropping=dropping)).build(ops=model.ops._replace(drop=None))
    for name, module in model.named_modules():  # a process may hold a part of the experts
        twin = dropper.get_submodule(name)
        for weight, value in module.named_parameters(recurse=False):
            setattr(twin, weight, value)
        for buffer, content in module.named_buffers(recurse=False):
            setattr(twin, buffer, content)
    dropper.train()
    nats, device = 0.0, model.embedding.device
    for first in range(0, len(batch.inputs), batch_size):
        inputs, targets, _, positions = batch.rows(first, batch_size)
        targets = targets.to(device)
        logits = dropper(inputs.to(device), positions=positions).logits.float()
        nats += F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_SCORED, reduction="sum"
        ).item()
    return nats / int((batch.targets != NOT_SCORED).sum())
