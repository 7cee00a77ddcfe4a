"""Caches that hold their tokens as packed codes, which attention decodes a chunk at a time.

B rows, S room of a row in tokens.
"""

from itertools import islice

import torch
from torch import Tensor

from dsv2.inference.cache import LayerCache, ModelCache
from dsv2.kernels.packed import Packed, Part
from dsv2.kernels.quantise import Bfloat16, Grouped, hadamard
from dsv2.models.attention import AttentionConfig
from dsv2.models.attention.cache import Places
from dsv2.models.attention.precision import KVPrecision
from dsv2.models.transformer import Transformer

Forms = tuple[tuple[Grouped | Bfloat16, ...], ...]  # of the parts of each of an attention's cached tensors


class QuantisedCache:
    """One layer's tokens in the given forms: a `Storage` whose codes and ranges lie in a `LayerCache`."""

    def __init__(self, held: LayerCache, forms: Forms, *, rotated: bool) -> None:
        """Take the tensors of all parts, one after the other, in a cache of zeros.

        `rotated`: whether the first of the cached tensors, MLA's latent, is stored rotated.
        """
        self.held, self.forms, self.rotated = held, forms, rotated

    @property
    def batch_size(self) -> int:
        return self.held.batch_size

    @property
    def max_length(self) -> int:
        return self.held.max_length

    @property
    def num_bytes(self) -> int:
        return self.held.num_bytes

    def write(self, *new: Tensor, places: Places) -> None:
        """Quantise and store tensors (B, T, ..., W) of the tokens in `places`, padding excepted.

        Raises ValueError if a gradient is wanted, which codes lack.
        """
        if torch.is_grad_enabled() and any(x.requires_grad for x in new):
            raise ValueError("a quantised cache has no gradient: it is for inference, under torch.no_grad()")
        if self.rotated:
            new = (hadamard(new[0].float()), *new[1:])
        encoded = [
            tensor
            for x, forms in zip(new, self.forms, strict=True)
            for form, part in zip(forms, x.split([form.width for form in forms], dim=-1), strict=True)
            for tensor in form.encode(part)
        ]
        self.held.write(*encoded, places=places)

    def read(self, end: int) -> tuple[Packed, ...]:
        """Return the first `end` tokens of every row, as they are stored."""
        tensors = iter(self.held.read(end))
        return tuple(
            Packed(
                tuple(Part(form, tuple(islice(tensors, len(form.shapes())))) for form in forms),
                rotated=self.rotated and number == 0,
            )
            for number, forms in enumerate(self.forms)
        )

    def rows(self, first: int, end: int) -> "QuantisedCache":
        return QuantisedCache(self.held.rows(first, end), self.forms, rotated=self.rotated)

    def copy(self, source: int, target: int, first: int, end: int) -> None:
        self.held.copy(source, target, first, end)

    def swap(self, row: int, other: int, end: int) -> None:
        self.held.swap(row, other, end)

    def clear(self, row: int, first: int, end: int) -> None:
        self.held.clear(row, first, end)


def allocate_quantised(
    attention: AttentionConfig,
    precision: KVPrecision.Config,
    *,
    batch_size: int,
    max_length: int,
    device: torch.device | str | None = None,
) -> QuantisedCache:
    """Return an empty cache for one attention layer."""
    forms = precision.forms(attention)
    tensors = tuple(
        torch.zeros(batch_size, max_length, *shape[:-1], *of_vector, dtype=dtype, device=device)
        for shape, parts in zip(attention.cache_shapes(), forms, strict=True)
        for form in parts
        for of_vector, dtype in form.shapes()
    )
    return QuantisedCache(LayerCache(tensors), forms, rotated=precision.hadamard)


def allocate_quantised_model(
    model: Transformer, precision: KVPrecision.Config, *, batch_size: int, max_length: int
) -> ModelCache:
    """Return empty caches for every layer, on the model's device."""
    attention, device = model.config.attention, model.embedding.device
    size = {"batch_size": batch_size, "max_length": max_length}
    return ModelCache([allocate_quantised(attention, precision, **size, device=device) for _ in model.layers])
