"""Every public op against its reference beside it: values and the gradient of every input, odd sizes included."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.grouped import grouped
from dsv2.kernels.norm import rms_norm
from dsv2.kernels.permute import gather_rows, weighted_sum
from dsv2.kernels.rope import rotate
from dsv2.kernels.swiglu import swiglu
from tests.references.tolerances import FLOAT32, close


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def compare(op, specification, *inputs):
    """Same values and gradients for float inputs; returns nothing, raises AssertionError."""
    results = []
    for function in (op, specification):
        copies = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        out = function(*copies)
        weights = random(*out.shape, seed=9, dtype=out.dtype)
        (out * weights).sum().backward()
        results.append((out, [x.grad for x in copies if x.is_floating_point()]))
    (out, grads), (expected, expected_grads) = results
    close(out, expected, FLOAT32, "output")
    for index, (grad, wanted) in enumerate(zip(grads, expected_grads, strict=True)):
        close(grad, wanted, FLOAT32, f"gradient {index}")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 5, 64)])
def test_rms_norm(shape):
    compare(
        lambda x, w: rms_norm(x, w, 1e-6),
        lambda x, w: reference.rms_norm(x, w, 1e-6),
        random(*shape),
        random(shape[-1], seed=1),
    )


def test_rms_norm_keeps_bfloat16_beside_float32_weights():
    """As in MLA's latents while products run in bfloat16: a wider result would be cast back by every product."""
    x, w = random(3, 64).bfloat16(), random(64, seed=1)
    for function in (rms_norm, reference.rms_norm):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        out = function(*leaves, 1e-6)
        assert out.dtype == torch.bfloat16
        wide = reference.rms_norm(x.float(), w, 1e-6)
        assert torch.allclose(out.float(), wide, rtol=2**-7, atol=0)  # two roundings to 8 bits
        out.float().sum().backward()
        assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 14), (2, 64)])
def test_swiglu(shape):
    compare(swiglu, reference.swiglu, random(*shape))


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 6), (2, 7, 4, 16)])
def test_rotate(shape):
    rotations = torch.polar(torch.ones(shape[1], shape[-1] // 2), random(shape[1], shape[-1] // 2, seed=2))
    compare(lambda x: rotate(x, rotations), lambda x: reference.rotate(x, rotations), random(*shape))


def test_rotate_takes_slices_that_start_within_a_pair():
    rotations = torch.polar(torch.ones(1, 2), random(1, 2, seed=2))
    compare(
        lambda x: rotate(x[..., 3:], rotations), lambda x: reference.rotate(x[..., 3:], rotations), random(1, 1, 1, 7)
    )


@pytest.mark.parametrize("counts", [[4], [0, 3, 0, 5], [1, 1, 1], [0, 0, 9], [7, 0]])
@pytest.mark.parametrize(("width_in", "width_out"), [(8, 12), (7, 5), (4, 4)])
def test_grouped(counts, width_in, width_out):
    w = random(len(counts), width_in, width_out, seed=1)
    counted = torch.tensor(counts)
    rows = random(sum(counts), width_in)
    compare(lambda x, w: grouped(x, counted, w), lambda x, w: reference.grouped(x, counted, w), rows, w)


def test_grouped_in_bfloat16_rounds_only_inputs_and_result():
    counts, rows, w = torch.tensor([3, 5]), random(8, 16).bfloat16(), random(2, 16, 8, seed=1).bfloat16()
    exact = reference.grouped(rows.double(), counts, w.double())
    got = grouped(rows, counts, w)
    assert got.dtype == torch.bfloat16
    close(got.double(), exact, 2**-8)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(("tokens", "top_k", "width"), [(1, 1, 3), (5, 2, 4), (7, 3, 1)])
def test_rows_go_to_experts_and_back(tokens, top_k, width):
    order = torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(3))
    inverse = order.argsort()
    compare(
        lambda x: gather_rows(x, order, inverse, top_k),
        lambda x: reference.gather_rows(x, order, top_k),
        random(tokens, width),
    )
    compare(
        lambda rows, gates: weighted_sum(rows, gates, order, inverse),
        lambda rows, gates: reference.weighted_sum(rows, gates, order),
        random(tokens * top_k, width),
        random(tokens, top_k, seed=1),
    )
