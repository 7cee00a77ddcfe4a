"""Packed codes: what a value may be off by, how codes lie in bytes, and groups that nothing else widens."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels.choice import using
from dsv2.kernels.quantise import PIECES, Bfloat16, Grouped, hadamard, pack, packed_width, unpack
from tests.references.kernels import normal
from tests.references.tolerances import EXACT, FLOAT32, close

pytestmark = pytest.mark.usefixtures("kernels")

WIDTHS = (1, 7, 48, 63, 64, 65, 72, 512, 576)


def through(form: Grouped, x: Tensor) -> Tensor:
    return form.decode(*form.encode(x))


def off(form: Grouped, x: Tensor) -> Tensor:
    """By how much values are off, relative to what the quantiser states."""
    codes, ranges = form.encode(x)
    bounds = form.error_bound(ranges).repeat_interleave(form.group_size, -1)[..., : form.width]
    return ((form.decode(codes, ranges) - x).abs() / bounds).amax()


def test_two_bits_are_four_values() -> None:
    """Pitfall 35: a cache that never quantises has an error of 0."""
    x = torch.arange(32) / 31
    values = through(Grouped(32, 2, 32), x)
    assert len(values.unique()) == 4
    assert float((values - x).abs().max()) == pytest.approx(0.161290, abs=1e-3)
    values = through(Grouped(32, 2, 32, range_bits=32), x)
    assert len(values.unique()) == 4
    assert float((values - x).abs().max()) == pytest.approx(0.161290, abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("width", [6, 70])
def test_channels_that_are_none_do_not_widen_the_range(sign: int, width: int) -> None:
    """Pitfall 36: six values in a group of eight, alone and as the last group after whole ones of other sizes."""
    six = sign * torch.tensor([10.00, 10.06, 10.12, 10.18, 10.24, 10.30])
    x = torch.cat((normal(width - 6), six))
    form = Grouped(width, 4, 8, range_bits=32)
    codes, ranges = form.encode(x)
    assert unpack(codes, 4, width)[-6:].tolist() == [0, 3, 6, 9, 12, 15][::sign]
    close(form.decode(codes, ranges)[-6:], six, FLOAT32)
    halved = Grouped(width, 4, 8)
    assert unpack(halved.encode(x)[0], 4, width)[-6:].tolist() == [0, 3, 6, 9, 12, 15][::sign]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", PIECES)
def test_codes_are_packed_without_loss_and_without_air(bits: int, width: int) -> None:
    codes = torch.randint(2**bits, (3, 2, width), generator=torch.Generator().manual_seed(width)).to(torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, width), codes)
    assert packed.shape == (3, 2, packed_width(width, bits))
    assert packed.dtype == torch.uint8
    assert packed_width(width, bits) - width * bits / 8 < len(PIECES[bits])
    if width % 8 == 0:
        assert packed_width(width, bits) == width * bits // 8  # four codes of 6 bits in 3 bytes, eight of 5 in 5


@pytest.mark.parametrize("range_bits", [16, 32])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", PIECES)
def test_no_value_is_off_by_more_than_is_stated(bits: int, width: int, range_bits: int) -> None:
    """Normal numbers of every size, shifted ones, large channels, and both signs."""
    form = Grouped(width, bits, range_bits=range_bits)
    x = normal(40, width, seed=bits)
    outlier = x * torch.where(torch.arange(width) % 13 == 0, 50.0, 1.0)
    cases = [x, -x.abs(), x + 1000, x - 7, outlier, x * 1e-5, x * 1e-9, x * 1e4, torch.full_like(x, 0.1)]
    for case in cases:
        assert off(form, case.clamp(-65504, 65504)) <= 1
    assert width == 1 or off(form, outlier) > 0.9  # and not by less


@pytest.mark.parametrize("bits", PIECES)
def test_the_bound_is_half_a_step_of_the_range(bits: int) -> None:
    x = normal(100, 576)
    form = Grouped(576, bits)
    low, high = x.unflatten(-1, (9, 64)).aminmax(dim=-1)
    bound = form.error_bound(form.encode(x)[1])
    assert (bound <= 1.003 * (high - low) / (2 * (2**bits - 1)) + 1e-5).all()


# asymmetric groups of 64 with scale and offset in float16, on normal numbers
@pytest.mark.parametrize(
    ("bits", "error"), [(8, 0.0053), (6, 0.0213), (5, 0.0433), (4, 0.0896), (3, 0.192), (2, 0.450)]
)
def test_the_error_on_normal_numbers_is_the_known_one(bits: int, error: float) -> None:
    x = normal(2000, 512)
    rms = float((through(Grouped(512, bits), x) - x).square().mean().sqrt())
    assert rms == pytest.approx(error, rel=0.02)


def test_a_range_that_float16_cannot_hold() -> None:
    """Beyond 65,504 values saturate; below 2^-24 they are off by half of that; float32 holds both."""
    large, small = torch.tensor([-1e6, 2e6, 3.0, 4e4]), torch.tensor([1e-9, 3e-9, -2e-9, 0.0])
    half, single = Grouped(4, 8, 4), Grouped(4, 8, 4, range_bits=32)
    got = through(half, large)
    assert got.isfinite().all()
    close(got, large.clamp(-65504, 65504), 0.5 / 127)
    assert float((through(half, small) - small).abs().max()) <= 2**-25
    for x in (large, small):
        assert off(single, x) <= 1
    assert float((through(single, small) - small).abs().max()) < 1e-11


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("range_bits", [16, 32])
def test_what_is_not_finite_does_not_become_a_number(bad: float, range_bits: int) -> None:
    x = normal(2, 12)
    x[0, 5] = bad
    got = through(Grouped(12, 4, 4, range_bits=range_bits), x)
    assert got[0, 4:8].isnan().all()
    assert got[0, :4].isfinite().all()
    assert got[0, 8:].isfinite().all()
    assert got[1].isfinite().all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", PIECES)
def test_bytes_are_those_of_the_tensors(bits: int, width: int) -> None:
    for form in (Grouped(width, bits), Grouped(width, bits, 24, 32), Bfloat16(width)):
        held = form.encode(normal(5, width))
        assert [(tuple(x.shape[1:]), x.dtype) for x in held] == [*form.shapes()]
        assert form.num_bytes == sum(x[0].numel() * x.element_size() for x in held)


def test_compiled_decoding_is_that_of_plain_torch() -> None:
    """Of parts of a wider tensor too, to a rounding of the product and sum; of no vectors; of NaN."""
    for bits in PIECES:
        for width, group_size, range_bits in ((72, 64, 16), (7, 3, 32), (576, 64, 16)):
            form = Grouped(width, bits, group_size, range_bits)
            held = [x[:, 1:3] for x in form.encode(normal(3, 4, 2, width))]
            decoded = {}
            for name in ("torch", "cpu"):
                with using(name):
                    decoded[name] = form.decode(*held)
                    assert form.decode(*(x[:0] for x in held)).shape == (0, 2, 2, width)
                    nan = form.decode(held[0], torch.full_like(held[1], torch.nan))
                    assert nan.isnan().all()
            close(decoded["cpu"], decoded["torch"], FLOAT32)


def test_other_tokens_do_not_matter() -> None:
    """A vector is quantised by itself, whatever comes with it."""
    form, x = Grouped(72, 3), normal(4, 6, 72)
    x[1] *= 100
    together = form.encode(x)
    for row in range(4):
        for token in range(6):
            for whole, part in zip(together, form.encode(x[row, token]), strict=True):
                assert torch.equal(whole[row, token], part)


def test_bfloat16_is_bfloat16() -> None:
    x = normal(3, 5)
    form = Bfloat16(5)
    close(form.decode(*form.encode(x)), x.bfloat16().float(), EXACT)


@pytest.mark.parametrize(("width", "block"), [(1, 1), (2, 2), (24, 8), (48, 16), (512, 512), (576, 64)])
def test_a_rotation_is_undone_by_itself_and_keeps_products(width: int, block: int) -> None:
    x, y = normal(3, width), normal(3, width, seed=1)
    close(hadamard(hadamard(x)), x, FLOAT32)
    close((hadamard(x) * hadamard(y)).sum(-1), (x * y).sum(-1), 1e-5)
    matrix = hadamard(torch.eye(width))
    assert torch.equal((matrix.abs() > 0).sum(-1), torch.full((width,), block))
    close(matrix[:block, :block].abs(), torch.full((block, block), block**-0.5), FLOAT32)


def test_a_rotation_spreads_a_large_channel() -> None:
    """Of 64 channels, one 30 times as large costs the others their codes; rotated, all share its size."""
    x = normal(500, 64)
    x[:, 3] *= 30
    form = Grouped(64, 4)
    plain = (through(form, x) - x).square().mean().sqrt()
    rotated = (hadamard(through(form, hadamard(x))) - x).square().mean().sqrt()
    assert rotated < 0.75 * plain
