"""The table between our parameters and the tensors of a Hugging Face DeepseekV2 checkpoint, used in both directions.

H heads, D head width without RoPE (qk_nope_head_dim), R RoPE width, V value width, C key-value latent width,
d model width, E routed experts, W expert width. Hugging Face's weights are all [out, in]; so are ours except those of
routed experts, which are applied as x @ w.

    self_attn.q_proj, or q_b_proj   [H (D + R), .]   attention.w_uq [H D, .], w_qr [H R, .], alternating per head
    self_attn.kv_a_proj_with_mqa    [C + R, d]       attention.w_dkv, then w_kr
    self_attn.kv_b_proj             [H (D + V), C]   attention.w_uk, w_uv, alternating per head
    mlp.gate_proj, mlp.up_proj      [w, d]           the two halves of ffn.w_gate_up's rows
    mlp.experts.{e}.gate_proj, ...  [W, d]           the two halves of ffn.experts.w_gate_up[e]'s columns
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.models.attention import MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer


class Part(NamedTuple):
    """A piece of one of our parameters, viewed as [..., out, in]."""

    name: str
    half: int | None = None  # of the rows: 0 gate, 1 up
    expert: int | None = None
    transposed: bool = False  # stored [in, out]

    def view(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the piece as a view into `weights`, which can be written to."""
        w = weights[self.name]
        if self.expert is not None:
            w = w[self.expert]
        if self.transposed:
            w = w.transpose(-1, -2)
        return w if self.half is None else w.chunk(2)[self.half]


class Row(NamedTuple):
    """One tensor of a checkpoint: its rows form `blocks` blocks, in each of which the parts are concatenated."""

    key: str
    parts: tuple[Part, ...]
    blocks: int = 1
    empty: tuple[int, ...] = ()  # shape of a tensor without elements and parts, which a checkpoint may omit

    def shape(self, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
        if not self.parts:
            return self.empty
        views = [part.view(weights).shape for part in self.parts]
        return (sum(shape[0] for shape in views), *views[0][1:])

    def gather(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Build the checkpoint's tensor from ours, as a contiguous copy."""
        if not self.parts:
            return next(iter(weights.values())).new_empty(self.empty)
        return torch.cat(self._pieces(weights), dim=1).flatten(0, 1)

    def scatter(self, tensor: Tensor, weights: Mapping[str, Tensor]) -> None:
        """Write the checkpoint's tensor into ours, cast to their dtype."""
        if not self.parts:
            return
        targets = self._pieces(weights)
        pieces = tensor.unflatten(0, (self.blocks, -1)).split([target.shape[1] for target in targets], dim=1)
        with torch.no_grad():
            for target, piece in zip(targets, pieces, strict=True):
                target.copy_(piece)

    def _pieces(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Return every part as a view (blocks, rows per block, ...)."""
        return [part.view(weights).unflatten(0, (self.blocks, -1)) for part in self.parts]


def table(config: Transformer.Config, *, fused: bool = False) -> Iterator[Row]:
    """Yield a row for every tensor of this model's checkpoint.

    With `fused`, routed experts are 3-D tensors, as transformers holds them in memory, rather than one per expert, as
    it saves them. Raises ValueError for attention other than MLA and for FFNs that deepseek_v2 does not have.
    """
    if not isinstance(config.attention, MLA.Config):
        raise ValueError(f"attention={config.attention!r}: a deepseek_v2 checkpoint has MLA")
    if type(config.ffn) not in (MoE.Config, SwiGLU.Config):
        raise ValueError(f"ffn={config.ffn!r}: a deepseek_v2 checkpoint has DeepSeekMoE or a dense SwiGLU")
    yield Row("model.embed_tokens.weight", (Part("embedding"),))
    yield Row("model.norm.weight", (Part("norm.w"),))
    if not config.tie_embeddings:
        yield Row("lm_head.weight", (Part("head"),))
    for layer, ffn in enumerate(config.ffns()):
        mlp = _dense("mlp", "ffn") if isinstance(ffn, SwiGLU.Config) else _moe(ffn, config.dim, fused)
        for row in (*_attention(config.attention), *mlp):
            parts = tuple(part._replace(name=f"layers.{layer}.{part.name}") for part in row.parts)
            yield row._replace(key=f"model.layers.{layer}.{row.key}", parts=parts)


def _attention(config: MLA.Config) -> Iterator[Row]:
    """Yield the rows of one layer's attention and its two norms."""
    heads, query = config.num_heads, "q_proj"
    yield Row("input_layernorm.weight", (Part("attention_norm.w"),))
    yield Row("post_attention_layernorm.weight", (Part("ffn_norm.w"),))
    if config.q_latent_dim is not None:
        query = "q_b_proj"
        yield Row("self_attn.q_a_proj.weight", (Part("attention.w_dq"),))
        yield Row("self_attn.q_a_layernorm.weight", (Part("attention.q_norm.w"),))
    yield Row(f"self_attn.{query}.weight", (Part("attention.w_uq"), Part("attention.w_qr")), heads)
    yield Row("self_attn.kv_a_proj_with_mqa.weight", (Part("attention.w_dkv"), Part("attention.w_kr")))
    yield Row("self_attn.kv_a_layernorm.weight", (Part("attention.kv_norm.w"),))
    yield Row("self_attn.kv_b_proj.weight", (Part("attention.w_uk"), Part("attention.w_uv")), heads)
    yield Row("self_attn.o_proj.weight", (Part("attention.w_o"),))


def _dense(theirs: str, ours: str) -> Iterator[Row]:
    """Yield the rows of a SwiGLU network: a dense FFN, or the shared experts."""
    yield Row(f"{theirs}.gate_proj.weight", (Part(f"{ours}.w_gate_up", half=0),))
    yield Row(f"{theirs}.up_proj.weight", (Part(f"{ours}.w_gate_up", half=1),))
    yield Row(f"{theirs}.down_proj.weight", (Part(f"{ours}.w_down"),))


def _moe(config: MoE.Config, dim: int, fused: bool) -> Iterator[Row]:
    """Yield the rows of router, routed and shared experts; without shared ones, transformers has empty tensors."""
    gate_up, down = "ffn.experts.w_gate_up", "ffn.experts.w_down"
    yield Row("mlp.gate.weight", (Part("ffn.router.w"),))
    if fused:
        yield Row("mlp.experts.gate_up_proj", (Part(gate_up, transposed=True),))
        yield Row("mlp.experts.down_proj", (Part(down, transposed=True),))
    for e in () if fused else range(config.num_experts):
        yield Row(f"mlp.experts.{e}.gate_proj.weight", (Part(gate_up, half=0, expert=e, transposed=True),))
        yield Row(f"mlp.experts.{e}.up_proj.weight", (Part(gate_up, half=1, expert=e, transposed=True),))
        yield Row(f"mlp.experts.{e}.down_proj.weight", (Part(down, expert=e, transposed=True),))
    if config.num_shared:
        yield from _dense("mlp.shared_experts", "ffn.shared")
    else:
        for name, shape in {"gate_proj": (0, dim), "up_proj": (0, dim), "down_proj": (dim, 0)}.items():
            yield Row(f"mlp.shared_experts.{name}.weight", (), empty=shape)
