"""Attention to packed keys against plain attention to what they decode to, over any number of chunks."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import packed
from dsv2.kernels.attention import attention
from dsv2.kernels.mla_decode import latent_attention
from dsv2.kernels.packed import Packed, Part, packed_attention
from dsv2.kernels.quantise import Bfloat16, Grouped, hadamard
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32, close

SIZES = (1, 3, 5, 8, 100)  # of chunks, for 11 keys


def pack(x: Tensor, *forms: Grouped | Bfloat16, rotated: bool = False) -> Packed:
    """Store x (B, S, ..., W), which is cut into the widths of the forms."""
    x = hadamard(x) if rotated else x
    parts = x.split([form.width for form in forms], dim=-1)
    return Packed(tuple(Part(f, f.encode(part)) for f, part in zip(forms, parts, strict=True)), rotated)


def whole(held: Packed, num_keys: int) -> Tensor:
    x = held.decode(0, num_keys)
    return hadamard(x) if held.rotated else x


@pytest.fixture(params=SIZES, autouse=True)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CHUNK", request.param)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_latents_give_what_they_decode_to(length: int, rotated: bool) -> None:
    """The last queries of 11 tokens, in a batch of 2, with 3 heads."""
    c_kv = pack(normal(2, 11, 24), Grouped(24, 4, 16), rotated=rotated)
    k_rope = pack(normal(2, 11, 6, seed=1), Bfloat16(6))
    q_latent, q_rope = normal(2, length, 3, 24, seed=2), normal(2, length, 3, 6, seed=3)
    got = latent_attention(q_latent, q_rope, c_kv, k_rope, scale=0.4)
    expected = latent_attention(q_latent, q_rope, whole(c_kv, 11), whole(k_rope, 11), scale=0.4)
    close(got, expected, FLOAT32)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("start", "length"), [(0, 11), (7, 4), (10, 1)])
def test_keys_and_values_of_heads_give_what_they_decode_to(groups: int, start: int, length: int) -> None:
    """Keys of two parts, the second wider."""
    k = pack(normal(2, 11, groups, 10), Grouped(4, 3), Grouped(6, 8))
    v = pack(normal(2, 11, groups, 7, seed=1), Grouped(7, 5, 4))
    q = normal(2, length, 6, 10, seed=2)
    got = attention(q, k, v, scale=0.4, start=start)
    close(got, attention(q, whole(k, 11), whole(v, 11), scale=0.4, start=start), FLOAT32)


def test_rows_see_the_keys_that_are_visible_to_them() -> None:
    """Rows of 11, 1 and 6 tokens; what lies beyond may be anything, as long as it is finite."""
    lengths = torch.tensor([11, 1, 6])
    x, r = normal(3, 11, 8), normal(3, 11, 2, seed=1)
    q_latent, q_rope = normal(3, 1, 2, 8, seed=2), normal(3, 1, 2, 2, seed=3)
    visible = (torch.arange(11) < lengths[:, None]).unsqueeze(1)

    def attend(fill: float) -> Tensor:
        for b, length in enumerate(lengths):
            x[b, length:], r[b, length:] = fill, fill
        latents, keys = pack(x, Grouped(8, 6)), pack(r, Grouped(2, 8))
        return latent_attention(q_latent, q_rope, latents, keys, scale=0.7, visible=visible)

    got = attend(0.0)
    assert torch.equal(got, attend(1e4))
    for b, length in enumerate(lengths.tolist()):
        alone = [pack(x[b : b + 1, :length], Grouped(8, 6)), pack(r[b : b + 1, :length], Grouped(2, 8))]
        close(got[b], latent_attention(q_latent[b : b + 1], q_rope[b : b + 1], *alone, scale=0.7)[0], FLOAT32)


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
def test_the_largest_score_may_be_in_any_chunk(offset: float) -> None:
    """Scores of 0, ln 3 + 1000 and the like neither overflow nor vanish, and a query sees as little as one key."""
    q, v = torch.ones(1, 1, 1, 1), torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    k = (torch.tensor([0.0, 3.0]).clamp(min=1).log() + offset).view(1, 2, 1, 1)
    for order in ([0, 1], [1, 0]):
        held = [pack(x[:, order], Grouped(1, 8, range_bits=32)) for x in (k, v)]
        close(packed_attention([(q, held[0])], held[1], scale=1.0), torch.full((1, 1, 1, 1), 4.0), 1e-4)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("empty_first", [False, True])
def test_an_empty_piece_adds_nothing(offset: float, empty_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 25: two keys of scores 0 and ln 3 with values 1 and 5, and a chunk that is not seen and holds 999."""
    monkeypatch.setattr(packed, "CHUNK", 2)
    seen = torch.tensor([not empty_first] * 2 + [empty_first] * 2)
    k, v = torch.full((4,), 999.0), torch.full((4,), 999.0)
    k[seen], v[seen] = torch.tensor([1.0, 3.0]).log() + offset, torch.tensor([1.0, 5.0])
    held = [pack(x.view(1, 4, 1, 1), Grouped(1, 8, range_bits=32)) for x in (k, v)]
    got = packed_attention([(torch.ones(1, 1, 1, 1), held[0])], held[1], scale=1.0, visible=seen.view(1, 1, 4))
    close(got, torch.full((1, 1, 1, 1), 4.0), 1e-4)


@pytest.mark.parametrize("start", [0, 8])
def test_pieces_of_wider_buffers_are_those_of_narrow_ones(start: int) -> None:
    """Pitfall 26: rows, keys, heads and channels lie in larger tensors, with NaN beside them."""
    k, v, q = normal(2, 11, 3, 10), normal(2, 11, 3, 7, seed=1), normal(2, 11 - start, 6, 10, seed=2)
    narrow = pack(k, Grouped(10, 5, 4)), pack(v, Bfloat16(7))

    def widened(x: Tensor) -> Tensor:
        wide = torch.full([size + 2 for size in x.shape], 255 if x.dtype == torch.uint8 else torch.nan, dtype=x.dtype)
        inner = wide[tuple(slice(1, 1 + size) for size in x.shape)]
        return inner.copy_(x)

    wide = [Packed(tuple(part._replace(held=tuple(map(widened, part.held))) for part in x.parts)) for x in narrow]
    assert not any(x.is_contiguous() for held in wide for part in held.parts for x in part.held)
    got, expected = (attention(q, *held, scale=0.4, start=start) for held in (wide, narrow))
    assert torch.equal(got, expected)


def test_a_wider_query_stays_so() -> None:
    """Float64 queries of bfloat16 keys; and bfloat16 ones, whose scores are summed in float32."""
    k, v = pack(normal(1, 11, 1, 8), Bfloat16(8)), pack(normal(1, 11, 1, 8, seed=1), Bfloat16(8))
    q = normal(1, 1, 2, 8, seed=2, dtype=torch.float64)
    expected = attention(q, whole(k, 11).double(), whole(v, 11).double(), scale=0.3, start=10)
    close(attention(q, k, v, scale=0.3, start=10), expected, 1e-12)
    low = attention(q.bfloat16(), k, v, scale=0.3, start=10)
    assert low.dtype == torch.bfloat16
    close(
        low.double(),
        attention(q.bfloat16().double(), whole(k, 11).double(), whole(v, 11).double(), scale=0.3, start=10),
        2**-8,
    )


def test_latents_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are keys and values."""
    calls = []
    decode = Grouped.decode
    monkeypatch.setattr(Grouped, "decode", lambda self, *held: calls.append(self.width) or decode(self, *held))
    latents, keys = pack(normal(1, 11, 8), Grouped(8, 6)), pack(normal(1, 11, 2, seed=1), Grouped(2, 8))
    latent_attention(normal(1, 1, 2, 8), normal(1, 1, 2, 2), latents, keys, scale=0.7)
    chunks = -(-11 // packed.CHUNK)
    assert sorted(calls) == [2] * chunks + [8] * chunks
