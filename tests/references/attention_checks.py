"""What GQA and MLA have in common: a case of one of them, computed whole, by loops and from a cache, and its checks.

B sequences, T tokens, d model width.
"""

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from dsv2.inference.cache import LayerCache, ModelCache, allocate
from dsv2.models.attention.mla import MLA
from dsv2.models.rope import Rope, Yarn
from tests import references
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE, close, same_values_and_gradients

# Stretched enough that three tokens notice, with factors on cosines, sines and the softmax scale that are not 1.
YARN = {"factor": 4.0, "original_length": 16, "mscale": 1.0, "mscale_all_dim": 0.5}
BASE = 10000.0


class Case(NamedTuple):
    """An attention and the size of what it reads."""

    kind: Any  # GQA or MLA
    shape: tuple[int, int, int]  # B, T, d
    sizes: dict[str, Any]  # fields of its config
    yarn: bool = False

    @property
    def config(self) -> Any:
        return self.kind.Config(**self.sizes)

    @property
    def rope(self) -> Rope:
        return Rope.Config(base=BASE, yarn=Yarn.Config(**YARN) if self.yarn else None).build()

    @property
    def rope_dim(self) -> int:
        """How many channels of a head turn."""
        return self.sizes.get("rope_dim") or self.sizes["head_dim"]

    def build(self, seed: int = 1) -> torch.nn.Module:
        """A float64 attention with random weights."""
        return references.randomise(self.config.build(self.shape[-1], self.rope).double(), seed)

    def rotations(self, start: int, end: int) -> Tensor:
        """Rotations of positions start to end - 1."""
        return self.rope.rotations(torch.arange(start, end), self.rope_dim)

    def whole(self, attention: torch.nn.Module, h: Tensor) -> Tensor:
        """Outputs of h (B, T, d) read at once, without a cache."""
        return attention(h, self.rotations(0, h.shape[1]))

    def decoded(self, attention: torch.nn.Module, h: Tensor, chunks: list[int]) -> tuple[Tensor, LayerCache]:
        """Outputs of h fed chunk by chunk through one cache, and the cache, which has room for two tokens more."""
        length = h.shape[1] + 2
        cache = allocate(self.config, batch_size=len(h), max_length=length, device="cpu", dtype=torch.float64)
        caches = ModelCache([cache])
        outputs, start = [], 0
        for chunk in chunks:
            end, places = start + chunk, caches.places(chunk)
            outputs.append(attention(h[:, start:end], self.rotations(start, end), cache, places))
            caches.advance(places)
            start = end
        return torch.cat(outputs, dim=1), cache

    def rope_factors(self) -> dict[str, Any]:
        """What the loops are told of positions, but for the softmax scale."""
        if not self.yarn:
            return {"thetas": references.rope_frequencies(self.rope_dim, BASE)}
        return {
            "thetas": references.yarn_frequencies(self.rope_dim, BASE, 4.0, 16, 32.0, 1.0),
            "rope_factor": references.yarn_cos_sin_factor(4.0, 1.0, 0.5),
        }

    def expected(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        """The loops' outputs."""
        sizes = {key: value for key, value in self.sizes.items() if key not in ("kv_latent_dim", "q_latent_dim")}
        sizes |= {"rope_dim": self.rope_dim, **self.rope_factors()}
        if self.yarn:
            sizes["softmax_factor"] = references.yarn_softmax_factor(4.0, 0.5)
        return (references.mla if self.kind is MLA else references.gqa)(h, w, **sizes)


def agrees_with_loops(case: Case) -> None:
    """Values, and the gradients of h and of every weight."""
    attention = case.build()
    leaves = {"h": references.random(*case.shape, seed=2), **dict(attention.named_parameters())}
    own = references.twin(leaves)
    y = case.whole(attention, leaves["h"])
    same_values_and_gradients(y, case.expected(own["h"], own), leaves, own, FLOAT32)


def agrees_with_loops_in_float32(case: Case) -> None:
    attention = case.build().float()
    leaves = {"h": references.random(*case.shape, seed=13).detach().float().requires_grad_()}
    leaves |= dict(attention.named_parameters())
    own = references.twin(leaves)
    y = case.whole(attention, leaves["h"])
    assert y.dtype == torch.float32
    same_values_and_gradients(y, case.expected(own["h"], own), leaves, own, FLOAT32_MODULE)


def decodes_token_by_token(case: Case) -> None:
    """One token at a time, outputs are those of the whole sequence, and those of the loops."""
    attention = case.build().eval()
    h = references.random(*case.shape, seed=6)
    with torch.no_grad():
        steps, _ = case.decoded(attention, h, [1] * case.shape[1])
        close(steps, case.whole(attention, h), FLOAT32)
    close(steps, case.expected(h, dict(attention.named_parameters())), FLOAT32)


@st.composite
def chunkings(draw: st.DrawFn) -> list[int]:
    """7 tokens in chunks of any size."""
    left, chunks = 7, list[int]()
    while left:
        chunks.append(draw(st.integers(1, left)))
        left -= chunks[-1]
    return chunks


def decodes_in_chunks(case: Case, chunks: list[int]) -> None:
    """A chunk sees all that the cache holds and, of itself, what is not later."""
    attention = case.build().eval()
    h = references.random(2, sum(chunks), case.shape[-1], seed=7)
    with torch.no_grad():
        close(case.decoded(attention, h, chunks)[0], case.whole(attention, h), FLOAT32)


def sees_nothing_later(case: Case) -> None:
    """An output depends on every token up to its own and on none after it."""
    h = references.random(1, 7, case.shape[-1], seed=11)
    whole = case.whole(case.build(), h)
    for t in range(7):
        (gradient,) = torch.autograd.grad(whole[:, t].sum(), h, retain_graph=True)
        assert not gradient[:, t + 1 :].any()
        assert gradient[:, : t + 1].abs().sum(-1).gt(0).all()


def remembers_nothing(case: Case, training: bool) -> None:
    """Neither calls without a cache nor those with one leave anything behind in the module."""
    attention = case.build().train(training)
    h = references.random(*case.shape, seed=12)

    def call() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            steps, _ = case.decoded(attention, h, [case.shape[1]])
        return case.whole(attention, h), steps

    references.remembers_nothing(attention, call)
