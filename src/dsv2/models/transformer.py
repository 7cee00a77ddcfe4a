"""The model: embedding, pre-norm blocks, final norm, output head.

B batch, T tokens, d model width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsv2.config import ConfigBase, added
from dsv2.kernels.cross_entropy import mean_nats
from dsv2.models.attention import AttentionConfig
from dsv2.models.attention.cache import Cache, Caches, Places, own_places
from dsv2.models.ffn import SwiGLU
from dsv2.models.init import initialise
from dsv2.models.moe import MoEConfig
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing
from dsv2.models.norm import RMSNorm
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.rope import Rope
from dsv2.models.weights import Weight

INTEGERS = (torch.int64, torch.int32)  # of ids and positions
MOST_LAYERS = 10_000  # every layer is built, and counted by itself


class Output(NamedTuple):
    logits: Tensor  # (B, T, V)
    routings: tuple[Routing, ...]  # one per MoE layer, first layer first


class Transformer(nn.Module):
    """Causal language model with any attention and any feed-forward network; keeps no state between calls."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        vocab_size: int
        dim: int
        num_layers: int
        attention: AttentionConfig
        ffn: MoEConfig | SwiGLU.Config  # of every layer after the first `num_dense_layers`
        num_dense_layers: int = 0
        dense: SwiGLU.Config | None = None  # FFN of the first `num_dense_layers`
        rope: Rope.Config = field(default_factory=Rope.Config)
        norm_eps: float = 1e-6
        tie_embeddings: bool = False
        init_std: float = 0.006
        embedding_std: float | None = added(None)  # initial std of the token embedding; None: init_std

        def __post_init__(self) -> None:
            for name in ("vocab_size", "dim", "num_layers", "norm_eps", "init_std"):
                self.require(0 < getattr(self, name) < math.inf, name, "positive and finite")
            spread = self.embedding_std is None or 0 < self.embedding_std < math.inf
            self.require(spread, "embedding_std", "positive, or null")
            self.require(self.num_layers <= MOST_LAYERS, "num_layers", f"at most {MOST_LAYERS:,}")
            fits = 0 <= self.num_dense_layers <= self.num_layers
            self.require(fits, "num_dense_layers", f"between 0 and num_layers={self.num_layers}")
            given = self.dense is not None or self.num_dense_layers == 0
            self.require(given, "dense", f"required for num_dense_layers={self.num_dense_layers}")

        def ffns(self) -> list[MoEConfig | SwiGLU.Config]:
            """Return the feed-forward network of each layer."""
            return [
                self.dense if self.dense is not None and layer < self.num_dense_layers else self.ffn
                for layer in range(self.num_layers)
            ]

        @property
        def moe(self) -> MoE.Config | None:
            """Config of the MoE layers, or None if there are none."""
            return self.ffn if isinstance(self.ffn, MoE.Config) and self.num_dense_layers < self.num_layers else None

        @property
        def moe_layers(self) -> range:
            """Indices of the MoE layers, counted from 0 at the input."""
            return range(self.num_layers if self.moe is None else self.num_dense_layers, self.num_layers)

        def layer_weights(self, layer: int) -> list[Weight]:
            """Return the weights of one block, named as in the module."""
            parts = {"attention": self.attention, "ffn": self.ffns()[layer]}
            inner = [
                weight._replace(name=f"{part}.{weight.name}")
                for part, config in parts.items()
                for weight in config.weights(self.dim)
            ]
            return [Weight("attention_norm.w", (self.dim,)), Weight("ffn_norm.w", (self.dim,)), *inner]

        def shapes(self) -> dict[str, tuple[int, ...]]:
            """Return the shape of every weight and buffer by its name in the module, without building that."""
            embedding, blocks = (self.vocab_size, self.dim), range(self.num_layers)
            of_layers = {
                f"layers.{layer}.{weight.name}": weight.shape
                for layer in blocks
                for weight in self.layer_weights(layer)
            }
            buffers = {
                f"layers.{layer}.ffn.{name}": shape
                for layer in self.moe_layers
                for name, shape in (self.moe.buffers() if self.moe is not None else {}).items()
            }
            head = {} if self.tie_embeddings else {"head": embedding}
            return {"embedding": embedding, **of_layers, **buffers, "norm.w": (self.dim,), **head}

        def build(self, *, seed: int = 0, ops: Ops = PLAIN) -> "Transformer":
            """Build the model on the default device, with weights initialised from `seed` (except on meta)."""
            model = Transformer(self, ops)
            initialise(model, std=self.init_std, embedding_std=self.embedding_std or self.init_std, seed=seed)
            return model

    def __init__(self, config: Config, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.config, self.ops, self.rope = config, ops, config.rope.build()
        self.recompute_layers = 0  # first layers whose activations backward computes again instead of keeping them
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.layers = nn.ModuleList(Block(config, ffn, self.rope, ops) for ffn in config.ffns())
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.dim))

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        caches: Caches | None = None,
        exempt: Tensor | None = None,
        routings: Sequence[Routing] | None = None,
        seed: int | None = None,
    ) -> Output:
        """Return the next-token logits of tokens (B, T) int64, and the routings of the MoE layers.

        `hidden` documents the arguments.
        """
        x, routings_ = self.hidden(
            tokens, positions=positions, caches=caches, exempt=exempt, routings=routings, seed=seed
        )
        return Output(self.ops.linear(x, self.head_weight), routings_)

    @property
    def head_weight(self) -> Tensor:
        """The output head's matrix (V, d), which may be the embedding."""
        return self.embedding if self.head is None else self.head

    def mean_nats(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of `hidden` states x (B, T, d) over the scored targets (B, T): float32."""
        if self.ops.head is not None:
            return self.ops.head(x, self.head_weight, targets)
        return mean_nats(self.ops.linear(x, self.head_weight), targets)

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        caches: Caches | None = None,
        exempt: Tensor | None = None,
        routings: Sequence[Routing] | None = None,
        seed: int | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Return the states before the output head, (B, T, d), and the routings of the MoE layers.

        Args:
            tokens: (B, T) int64, B and T at least 1. Raises ValueError for other shapes and types and, except on a GPU,
                which would have to be waited for, for ids out of the vocabulary.
            positions: (B, T) int64, for rows of different lengths. They are consecutive within a row; -1 marks padding
                on either side, which is masked. Without caches, 0 begins another document, which sees nothing of those
                before it in its row. By default, tokens follow those in the caches. With the model on a GPU, positions
                on the CPU save waiting for it.
            caches: One per layer, as of `dsv2.inference.cache.allocate_model`, with the earlier tokens; they are
                extended. If anything fails, they have the length they had.
            exempt: (B,) bool, sequences exempt from token dropping.
            routings: One per MoE layer; their experts are replayed, with gates from the live affinities.
            seed: Determines the random draws of routers in training and should differ in every step. By default, they
                use torch's generator.
            router_logits: A list to which the logits (B, T, E) of every MoE layer with a softmax router are added, for
                the z-loss; they are computed for it alone, with 6 d E FLOPs per token and layer.

        Raises ValueError for positions beyond the limit of an extended RoPE.
        """
        require_tokens(tokens)
        if caches is not None:
            self._require_fitting(caches, tokens)
        places = self._places(tokens, positions, caches)
        where = torch.arange(tokens.shape[1], device=tokens.device) if places is None else places.positions
        if places is not None and places.padded:
            # so that padding ids have no effect, not even on the grouping of experts' rows
            tokens, where = tokens.masked_fill(where < 0, 0), where.clamp(min=0)
        rotations = self.rope.rotations(where, self.config.attention.rotary_dim)
        if tokens.device.type == "cpu":
            require_ids(tokens, self.config.vocab_size)
        recorded = iter(routings or ())
        x, delta, chosen = F.embedding(tokens, self.embedding), None, []
        for index, layer in enumerate(self.layers):
            replay = next(recorded) if routings and isinstance(layer.ffn, MoE) else None
            own_seed = None if seed is None else (seed * len(self.layers) + index) % 2**63
            hints = Hints(tokens, exempt, replay, own_seed, logits=router_logits is not None)
            cache = None if caches is None else caches[index]
            x, delta, routing, logits = self.run_layer(index, x, delta, rotations, hints, cache, places)
            if routing is not None:
                chosen.append(routing)
            if router_logits is not None and logits is not None:
                router_logits.append(logits)
        if caches is not None and places is not None:
            caches.advance(places)
        return self.norm.after(x, delta)[1], tuple(chosen)

    def run_layer(
        self,
        index: int,
        x: Tensor,
        delta: Tensor | None,
        rotations: Tensor,
        hints: Hints,
        cache: Cache | None = None,
        places: Places | None = None,
    ) -> tuple[Tensor, Tensor | None, Routing | None, Tensor | None]:
        """Run one block, as its `forward` documents; it is run again in backward if it is among `recompute_layers`."""
        run: Callable[..., Any] = self.layers[index]
        if index < self.recompute_layers and torch.is_grad_enabled():
            run = partial(_recomputed, self.layers[index])
        ran: tuple[Tensor, Tensor | None, Routing | None, Tensor | None]
        ran = run(x, delta, rotations, cache, hints, places)
        return ran

    def _require_fitting(self, caches: Caches, tokens: Tensor) -> None:
        """Raise ValueError unless there is one cache per layer with as many rows as tokens (B, T)."""
        if len(caches) != len(self.layers):
            raise ValueError(f"caches has length {len(caches)}: must have one per layer, {len(self.layers)}")
        if (rows := len(caches.lengths)) != len(tokens):
            raise ValueError(f"tokens has {len(tokens)} rows: must have as many as the caches, {rows}")

    def _places(self, tokens: Tensor, positions: Tensor | None, caches: Caches | None) -> Places | None:
        """Return where the tokens are; None if they start at position 0 and see nothing else. Raises ValueError."""
        if positions is not None and (positions.shape != tokens.shape or positions.dtype not in INTEGERS):
            shape = f"{tuple(positions.shape)} {positions.dtype}"
            raise ValueError(f"positions has shape {shape}: must be one integer per token, {tuple(tokens.shape)}")
        if caches is None and positions is None:
            self.rope.require_within(tokens.shape[1] - 1)
            return None
        if caches is not None:
            places = caches.places(tokens.shape[1], positions, tokens.device)
        else:
            assert positions is not None
            places = own_places(positions.to(tokens.device))
        self.rope.require_within(places.last)
        return places


def _recomputed(layer: nn.Module, *inputs: Any) -> Any:
    """Call a layer so that only its inputs and outputs are kept for backward, which calls it again.

    That happens in a thread of autograd, to which the choice of kernels goes along in a copy of the context.
    """
    return checkpoint(copy_context().run, layer, *inputs, use_reentrant=False)


def require_model(model: object) -> None:
    """Raise TypeError for what is no module at all."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has type {type(model).__name__}: must be a Transformer, as of config.build()")


def require_tokens(tokens: Tensor) -> None:
    """Raise ValueError unless tokens are a batch (B, T) of integers, with at least one row and one token."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or not tokens.numel() or tokens.dtype not in INTEGERS:
        tensor = isinstance(tokens, Tensor)
        given = f"shape {tuple(tokens.shape)} {tokens.dtype}" if tensor else f"type {type(tokens).__name__}"
        raise ValueError(f"tokens has {given}: must be a tensor (B, T) of int64, with at least one row and one token")


def require_ids(tokens: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless every id is in the vocabulary."""
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"tokens has ids from {low} to {high}: must be 0 to {vocab_size - 1}, those of the vocabulary")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode within the context, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + ffn(norm(x)).

    What a block adds last is handed to the next norm, which adds it: one pass over memory instead of two.
    """

    def __init__(self, config: Transformer.Config, ffn: MoEConfig | SwiGLU.Config, rope: Rope, ops: Ops) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = config.attention.build(config.dim, rope, ops)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = ffn.build(config.dim, ops)

    def forward(
        self,
        x: Tensor,
        delta: Tensor | None,
        rotations: Tensor,
        cache: Cache | None,
        hints: Hints,
        places: Places | None = None,
    ) -> tuple[Tensor, Tensor, Routing | None, Tensor | None]:
        """Return the residual stream (B, T, d), what is still to be added to it, and the routing of an MoE layer.

        The fourth are the logits of its router, if the hints ask for them and it has any.
        """
        x, normed = self.attention_norm.after(x, delta)
        x, normed = self.ffn_norm.after(x, self.attention(normed, rotations, cache, places))
        if not isinstance(self.ffn, MoE):
            return x, self.ffn(normed), None, None
        return x, *self.ffn(normed, hints), self.ffn.router_logits(normed) if hints.logits else None
