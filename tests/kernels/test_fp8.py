"""FP8: what the cast does with every kind of number, blocks and groups of any size, and the error of products."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import fp8, reference
from dsv2.kernels.fp8 import BLOCK, Scaled, grouped, linear, quantise_blocks, quantise_rows, scaled_product, to_e4m3
from tests.references.kernels import normal
from tests.references.tolerances import EXACT, close

BOUND = 0.04  # of the relative RMS error of a product, on Gaussian data: 0.037
SHAPES = [(1, 1), (3, 130), (128, 128), (129, 127), (256, 300), (64, 48), (576, 72)]


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


# ---- the cast --------------------------------------------------------------------------------------------------------


def test_what_is_too_large_saturates() -> None:
    """Pitfall 37: 464 is halfway between 448 and the next power's first value, which does not exist."""
    x = torch.tensor([448.0, 464.0, 465.0, 10000.0, -10000.0, 3e38])
    assert to_e4m3(x).float().tolist() == [448, 448, 448, 448, -448, 448]


def test_what_is_not_finite_becomes_nan() -> None:
    assert to_e4m3(torch.tensor([torch.nan, torch.inf, -torch.inf])).float().isnan().all()


def test_the_smallest_numbers() -> None:
    """2^-9 is the smallest one; half of it is as near to 0, which is even."""
    x = torch.tensor([2**-9, 2**-10, -(2**-10), 1.01 * 2**-10, 3 * 2**-10, 0.0])
    assert to_e4m3(x).float().tolist() == [2**-9, 0, 0, 2**-9, 2 * 2**-9, 0]


def test_every_number_of_the_type_stays_as_it_is() -> None:
    codes = torch.arange(256).to(torch.uint8)
    codes = codes[(codes & 127) != 127]  # not NaN
    values = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(to_e4m3(values).view(torch.uint8), codes)


# ---- blocks and groups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_each_block_has_the_scale_of_its_largest_number(shape: tuple[int, int]) -> None:
    w = normal(*shape)
    w[:BLOCK, :BLOCK] *= 1000
    held = quantise_blocks(w)
    assert held.codes.shape == shape
    for i, block_rows in enumerate(w.split(BLOCK)):
        for j, block in enumerate(block_rows.split(BLOCK, dim=1)):
            close(held.scales[i, j], block.abs().max() / 448, 1e-7)
            got = held.decode()[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            assert ((got - block).abs() <= block.abs() / 16 + held.scales[i, j] * 2**-10).all()
    assert held.scales.shape == (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))


@pytest.mark.parametrize("width", [1, 48, 72, 128, 130, 576])
def test_each_group_of_a_row_has_a_scale(width: int) -> None:
    x = normal(2, 3, width)
    x[1, 2] *= 1e6
    held = quantise_rows(x)
    assert held.codes.shape == x.shape
    assert held.scales.shape == (2, 3, -(-width // BLOCK))
    assert (
        (held.decode() - x).abs() <= x.abs() / 16 + held.scales.repeat_interleave(BLOCK, -1)[..., :width] * 2**-10
    ).all()
    assert torch.equal(quantise_rows(x[:1]).codes.float(), held.codes[:1].float())  # other rows do not matter


def test_matrices_of_experts_are_quantised_one_by_one() -> None:
    w = normal(3, 130, 200)
    held = quantise_blocks(w)
    for expert in range(3):
        assert torch.equal(held.decode()[expert], quantise_blocks(w[expert]).decode())


def test_quantising_again_changes_nothing() -> None:
    w = normal(200, 300)
    once = quantise_blocks(w).decode()
    close(quantise_blocks(once).decode(), once, 1e-6)
    assert torch.equal(quantise_blocks(once).codes.float(), quantise_blocks(w).codes.float())


def test_zeros_and_the_smallest_numbers_stay_finite() -> None:
    for x in (torch.zeros(2, 130), torch.full((2, 130), 1e-42), torch.full((2, 130), 1e38)):
        close(quantise_rows(x).decode(), x, 1 / 16)
        close(quantise_blocks(x).decode(), x, 1 / 16)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_one_number_that_is_not_finite_spoils_its_group_and_no_other(bad: float) -> None:
    x = normal(3, 300)
    x[1, 140] = bad
    rows, blocks = quantise_rows(x).decode(), quantise_blocks(x).decode()
    assert rows[1, 128:256].isnan().all()
    assert blocks[:, 128:256].isnan().all()
    rows[1, 128:256] = 0
    assert rows.isfinite().all()
    assert blocks[:, :128].isfinite().all()
    assert linear(x, normal(4, 300))[1].isnan().all()


# ---- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 256, 384), (5, 130, 70), (64, 48, 200), (33, 128, 128)])
@pytest.mark.parametrize("outliers", [False, True])
def test_products_are_within_the_bound(shape: tuple[int, int, int], outliers: bool) -> None:
    """On Gaussian data, and with channels that are 50 times as large as the others."""
    rows, inner, outer = shape
    x, w = normal(rows, inner), normal(outer, inner, seed=1)
    if outliers:
        x[:, ::37] *= 50
    assert 0.005 < relative(linear(x, w), x @ w.t()) <= BOUND  # it does quantise


def test_a_product_is_that_of_what_was_stored() -> None:
    """Rounded to bfloat16 once, at the end."""
    x, w = normal(2, 5, 300), normal(200, 300, seed=1)
    expected = quantise_rows(x).decode().double() @ quantise_blocks(w).decode().double().t()
    got = linear(x, w)
    assert got.dtype == torch.bfloat16
    assert got.shape == (2, 5, 200)
    close(got.double(), expected, 2**-8)


def test_blocks_are_better_than_one_scale_where_channels_differ() -> None:
    x, w = normal(64, 512), normal(256, 512, seed=1)
    w[:, :3] *= 1e6
    x[:, :3] /= 1e6

    def whole(y: Tensor) -> Tensor:
        scale = y.abs().max() / 448
        return to_e4m3(y / scale).float() * scale

    expected = x @ w.t()
    assert relative(linear(x, w), expected) < 0.6 * relative(whole(x) @ whole(w).t(), expected)


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [0, 0, 0, 0]])
def test_experts_multiply_their_own_rows(counts: list[int]) -> None:
    rows, w = normal(sum(counts), 130), normal(4, 130, 48, seed=1)
    got = grouped(rows, torch.tensor(counts), w)
    assert got.shape == (sum(counts), 48)
    stored = quantise_blocks(w.mT).decode().mT
    close(got.double(), reference.grouped(quantise_rows(rows).decode(), torch.tensor(counts), stored).double(), 2**-8)


def test_a_gradient_that_would_be_missing_is_refused() -> None:
    w = normal(8, 8).requires_grad_()
    with pytest.raises(ValueError, match="products in FP8 have no gradient"):
        linear(normal(2, 8), w)
    with pytest.raises(ValueError, match="products in FP8 have no gradient"):
        grouped(normal(2, 8).requires_grad_(), torch.tensor([2]), normal(1, 8, 8))
    with torch.no_grad():
        assert linear(normal(2, 8), w).shape == (2, 8)


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize(("inner", "outer"), [(128, 128), (384, 256), (640, 128)])
def test_the_call_on_tensor_cores_is_one_that_torch_takes(rows: int, inner: int, outer: int) -> None:
    """Layouts of codes and scales, checked by torch's own rules without a GPU."""
    x, w = quantise_rows(normal(rows, inner)), quantise_blocks(normal(outer, inner))
    meta = [Scaled(held.codes.to("meta"), held.scales.to("meta"), held.height) for held in (x, w)]
    assert scaled_product(*meta).shape == (rows, outer)
    wrong = meta[1]._replace(scales=meta[1].scales.new_empty(outer // BLOCK, inner // BLOCK + 4))
    with pytest.raises((RuntimeError, ValueError)):
        scaled_product(meta[0], wrong)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
def test_tensor_cores_give_what_is_emulated() -> None:
    x, w = normal(7, 640).cuda(), normal(256, 640, seed=1).cuda()
    assert fp8._on_tensor_cores(x, w)
    close(linear(x, w).cpu().double(), linear(x.cpu(), w.cpu()).double(), 2**-7)


def test_nothing_is_lost_by_the_exact_codes_of_small_integers() -> None:
    """Integers to 16 are numbers of the type; scaled so that 448 is among them, products are exact."""
    x = torch.tensor([[448.0, 16.0, -3.0, 0.0]])
    w = torch.tensor([[1.0, 2.0, 448.0, 5.0]])
    close(linear(x, w).float(), torch.tensor([[448.0 + 32 - 1344]]), EXACT)
