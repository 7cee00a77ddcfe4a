"""Weights of a run, by step, and their hash."""

from pathlib import Path

import pytest
import torch

from dsv2.storage.weights import hash_of, read_weights


def test_weights_are_read_by_step(trained: Path, imported: Path) -> None:
    newest, earlier = read_weights(trained), read_weights(trained, 8)
    assert (newest.step, earlier.step, read_weights(imported).step) == (12, 8, None)
    assert hash_of(newest.tensors) == hash_of(read_weights(trained, 12).tensors) != hash_of(earlier.tensors)
    assert {"embedding", "head", "norm.w"} <= newest.tensors.keys() == read_weights(imported).tensors.keys()
    with pytest.raises(ValueError, match="step=4 has no checkpoint; steps that have one: 8, 12"):
        read_weights(trained, 4)


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2, dtype=torch.bfloat16)
    same = hash_of({"a": a, "b": b})
    assert hash_of({"b": b.clone(), "a": a.t().contiguous().t()}) == same
    others = [{"a": a, "c": b}, {"a": a.view(3, 2), "b": b}, {"a": a, "b": b.half()}, {"a": a + 1e-6, "b": b}, {"a": a}]
    assert len({same, *map(hash_of, others)}) == 6
    assert hash_of({"a": torch.zeros(())}) != hash_of({"a": torch.zeros(1)})
