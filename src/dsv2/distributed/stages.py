"""A model cut into pipeline stages: which layers each has, and their FLOPs and saved activations.

A stage is a slice of consecutive layers. The first also has the embedding, the last the final norm, the head and the
loss. F forward, B gradients of the inputs, W gradients of the weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dsv2.accounting.memory import activations_of_head, activations_of_layer
from dsv2.config import ConfigError
from dsv2.models.transformer import Transformer
from dsv2.models.weights import Weight


class StageCosts(NamedTuple):
    """One stage's FLOPs and bytes per token."""

    layers: range
    forward: int
    backward_input: int
    backward_weight: int
    activations: int  # bytes saved for backward; copies of weights in bfloat16 are not among them

    @property
    def flops(self) -> int:
        return self.forward + self.backward_input + self.backward_weight


def stages_of(
    model: Transformer.Config,
    num_stages: int,
    *,
    context: int = 4096,
    precision: str = "bf16",
    recompute_layers: int = 0,
) -> list[StageCosts]:
    """Cut a model into stages whose largest forward is as small as it can be, and return their costs.

    FLOPs are those of `account`, which is their sum, and of the forwards that the first `recompute_layers` run again;
    these come before the gradients of the inputs. Raises ConfigError for more stages than layers.
    """
    if not 1 <= num_stages <= model.num_layers:
        raise ConfigError("stages", num_stages, f"1 to the {model.num_layers} layers of the model")
    layers = [_layer(model, layer, context, precision, layer < recompute_layers) for layer in range(model.num_layers)]
    head = 2 * model.vocab_size * model.dim
    forwards = [layer.forward for layer in layers]
    forwards[-1] += head
    stages = []
    for of_stage in partition(forwards, num_stages):
        parts = [layers[layer] for layer in of_stage]
        extra = head if of_stage.stop == model.num_layers else 0
        held = sum(part.activations for part in parts) + (activations_of_head(model, precision) if extra else 0)
        forward, backward_input, backward_weight = (
            extra + sum(getattr(part, name) for part in parts) for name in StageCosts._fields[1:4]
        )
        stages.append(StageCosts(of_stage, forward, backward_input, backward_weight, held))
    return stages


def partition(costs: Sequence[float], num_parts: int) -> list[range]:
    """Cut a sequence into non-empty consecutive parts whose largest sum is as small as it can be."""
    count = len(costs)
    assert 1 <= num_parts <= count
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    best = sums[1:]  # best[i]: the largest sum if the first i + 1 costs are in one part
    cuts: list[list[int]] = []
    for part in range(1, num_parts):
        largest, cut = [float("inf")] * count, [0] * count
        for end in range(part, count):
            options = [(max(best[first - 1], sums[end + 1] - sums[first]), first) for first in range(part, end + 1)]
            largest[end], cut[end] = min(options)
        best = largest
        cuts.append(cut)
    parts, end = list[range](), count
    for cut in reversed(cuts):
        parts.append(range(cut[end - 1], end))
        end = cut[end - 1]
    return [range(end), *reversed(parts)]


def _layer(model: Transformer.Config, layer: int, context: int, precision: str, recompute: bool) -> StageCosts:
    weights: list[Weight] = model.layer_weights(layer)
    products = 2 * sum(weight.active for weight in weights if weight.is_matrix)
    scores = model.attention.score_flops(context)
    again = products + scores if recompute else 0
    held = activations_of_layer(model, layer, length=context, precision=precision, recompute=recompute)
    return StageCosts(range(layer, layer + 1), products + scores, products + 2 * scores + again, products, held)
