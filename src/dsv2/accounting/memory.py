"""Memory of training: weights, gradients, optimiser state, and the activations saved for backward.

B batch, T tokens, d model width, H heads, G key-value heads, E experts, K experts per token, V vocabulary.

Activations are the tensors that autograd saves between forward and backward of one batch on one device, in plain torch,
each storage once; of layers that are computed again, their inputs and routing alone. The residual stream, norms, router
and losses are float32 in any precision; "bf16" saves a bfloat16 copy of every matmul's input and weight. Attention
saves queries, keys, values, output and one number per head and query, but not the T x T scores, unless values are wider
than keys. Not counted: temporaries, and the few bytes of balance losses, device limit and token dropping. Within 0.5%
of the tensors that autograd saves.
"""

from typing import Any, NamedTuple

from dsv2.accounting.account import MOST, account
from dsv2.config import ConfigError
from dsv2.models.attention import GQA, AttentionConfig
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import MoEConfig, Switch
from dsv2.models.transformer import Transformer

WIDE = 4  # bytes of float32
INDEX = 8  # bytes of int64
PRODUCT = {"fp32": 4, "bf16": 2}  # bytes per element of a matmul's input and output


class Kept(NamedTuple):
    """One row: the bytes that a part saves, summed over layers."""

    part: str
    layers: int
    bytes: int


class Memory(NamedTuple):
    """Bytes on one device that holds the whole model."""

    weights: int  # float32
    gradients: int
    optimizer: int  # AdamW's two moments
    activations: tuple[Kept, ...]
    tokens: int  # B T

    @property
    def activation_bytes(self) -> int:
        return sum(item.bytes for item in self.activations)

    @property
    def activation_bytes_per_token(self) -> float:
        return self.activation_bytes / self.tokens

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activation_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        sums = {name: getattr(self, name) for name in ("activation_bytes", "activation_bytes_per_token", "total")}
        return self._asdict() | sums | {"activations": [item._asdict() for item in self.activations]}


def training_memory(
    model: Transformer.Config,
    *,
    batch: int = 1,
    length: int = 4096,
    precision: str = "fp32",
    recompute_layers: int = 0,
) -> Memory:
    """Return the memory of training `model` on `batch` sequences of `length` tokens.

    The activations of the first `recompute_layers` are computed again in backward, one layer at a time.
    """
    for name, value in (("batch", batch), ("length", length)):
        if not 1 <= value <= MOST:
            raise ConfigError(name, value, f"1 to {MOST:,}")
    if precision not in PRODUCT:
        raise ConfigError("precision", precision, f"one of {', '.join(PRODUCT)}")
    if not 0 <= recompute_layers <= model.num_layers:
        raise ConfigError("recompute_layers", recompute_layers, f"0 to {model.num_layers}")
    product, tokens, layers = PRODUCT[precision], batch * length, model.num_layers - recompute_layers
    rows = [
        ("embedding", 1, INDEX),
        ("norms", 2 * layers + 1, WIDE * (model.dim + 1)),  # the input and 1 / rms
        ("attention", layers, _attention(model.attention, model.dim, length, product)),
    ]
    dense, ffns = model.num_dense_layers, model.ffns()
    for name, of_kind in (
        ("ffn, dense layers", ffns[recompute_layers:dense]),
        ("ffn", ffns[max(recompute_layers, dense) :]),
    ):
        rows += [(name, len(of_kind), _ffn(of_kind[0], model.dim, product))] if of_kind else []
    rows += [("head and loss", 1, _head(model, product))]
    kept = [Kept(part, count, tokens * count * size) for part, count, size in rows if count]
    if recompute_layers:
        again = sum(_inputs_of_layer(i, ffn, model.dim, product) for i, ffn in enumerate(ffns[:recompute_layers]))
        kept.append(Kept("layers computed again", recompute_layers, tokens * again))
    kept.append(Kept("rotations", 1, length * WIDE * model.attention.rotary_dim))
    if precision == "bf16":
        kept.append(Kept("weights in bfloat16", max(layers, 1), product * _cast_weights(model, recompute_layers)))
    weights = WIDE * account(model).total_params
    return Memory(weights, weights, 2 * weights, tuple(kept), tokens)


def activations_of_layer(
    model: Transformer.Config, layer: int, *, length: int, precision: str, recompute: bool = False
) -> int:
    """Return the bytes per token that one layer saves for backward; copies of weights are not among them."""
    product, ffn = PRODUCT[precision], model.ffns()[layer]
    if recompute:
        return _inputs_of_layer(layer, ffn, model.dim, product)
    norms = 2 * WIDE * (model.dim + 1)
    return norms + _attention(model.attention, model.dim, length, product) + _ffn(ffn, model.dim, product)


def activations_of_head(model: Transformer.Config, precision: str) -> int:
    """Return the bytes per token that the final norm, the head and the loss save for backward."""
    return WIDE * (model.dim + 1) + _head(model, PRODUCT[precision])


def _head(model: Transformer.Config, product: int) -> int:
    """Return the bytes per token of the head's input, and of log-probabilities for the loss."""
    return product * model.dim + WIDE * model.vocab_size


def _inputs_of_layer(index: int, ffn: MoEConfig | SwiGLU.Config, dim: int, product: int) -> int:
    """Return the bytes per token that a layer keeps to be computed again: its two inputs, and its routing."""
    routing = 0 if isinstance(ffn, SwiGLU.Config) else WIDE * (ffn.num_experts + ffn.top_k) + INDEX * ffn.top_k
    return WIDE * dim + (product * dim if index else 0) + routing


def _inputs(width: int, products: int, product: int) -> int:
    """Return the bytes per token of a float32 input of several matmuls: shared, or in bf16 one copy per matmul."""
    return width * (WIDE if product == WIDE else product * products)


def _attention(attention: AttentionConfig, dim: int, length: int, product: int) -> int:
    """Return the bytes per token of one layer: inputs of its matmuls, and what attention itself saves."""
    heads = attention.num_heads
    if isinstance(attention, GQA.Config):
        queries, keys = heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        norm = product * keys + WIDE * attention.num_kv_heads if attention.key_norm else 0
        return _inputs(dim, 3, product) + norm + product * 2 * (queries + keys) + WIDE * heads
    latents = 2 * product * attention.kv_latent_dim + WIDE  # before and after its norm
    products = 4
    if attention.q_latent_dim is not None:
        latents += 2 * product * attention.q_latent_dim + WIDE
        products = 3
    width, v_dim = attention.head_dim + attention.rope_dim, attention.v_dim
    if v_dim > width:  # the only case without a fused kernel: attention weights are saved
        inner = product * (2 * width + 2 * v_dim) + WIDE * length
    else:  # values and output padded to the width of keys; the unpadded output is a copy
        inner = product * (4 * width + (v_dim if v_dim < width else 0)) + WIDE
    return _inputs(dim, products, product) + latents + heads * inner


def _ffn(ffn: MoEConfig | SwiGLU.Config, dim: int, product: int) -> int:
    """Return the bytes per token of one layer."""
    if isinstance(ffn, SwiGLU.Config):
        return _inputs(dim, 1, product) + 3 * product * ffn.width
    routing = (2 * INDEX + product) * ffn.top_k  # order, inverse and gates
    routed = any(weight.name == "router.w" for weight in ffn.weights(dim))  # not by a hash
    if routed:
        routing += WIDE * (dim + ffn.num_experts) + INDEX * ffn.top_k  # its input, affinities and choice
    if isinstance(ffn, Switch.Config) and ffn.jitter:
        routing += WIDE * dim  # the noise on the router's input
    experts = product * ffn.top_k * (2 * dim + 3 * ffn.expert_dim)
    if not ffn.num_shared:
        return routing + experts
    shared = 0 if routed and product == WIDE else product * dim  # the router's input serves both in float32
    return routing + experts + shared + 3 * product * ffn.num_shared * ffn.expert_dim


def _cast_weights(model: Transformer.Config, first: int) -> int:
    """Count the elements of matrices cast for matmuls from layer `first` on, and in the head.

    The router stays in float32, and the embedding is looked up.
    """
    blocks = [weight for layer in range(first, model.num_layers) for weight in model.layer_weights(layer)]
    cast = sum(weight.total for weight in blocks if weight.is_matrix and weight.name != "ffn.router.w")
    return cast + model.vocab_size * model.dim
