"""Rows of different lengths in one batch give what each row gives alone."""

import pytest
import torch

import dsv2
from dsv2.inference.cache import allocate_model

OVERRIDES = {
    "mla": ["model/attention=mla"],
    "mla, query latent": ["model/attention=mla", "model.attention.q_latent_dim=12"],
    "mla, YaRN": ["model/attention=mla", "model/rope=yarn", "model.rope.yarn.factor=4"],
    "mha": ["model/attention=mha"],
    "gqa": ["model/attention=gqa", "model.attention.key_norm=true"],
    "gqa, partial RoPE": ["model/attention=gqa", "model.attention.rope_dim=8"],
    "mqa": ["model/attention=mqa"],
    "hash": ["model/attention=mha", "model/ffn=hash"],
}
LENGTHS = [5, 1, 8, 3]
ROW = 1e-5  # relative to the largest logit: batched float32 products add in another order


@pytest.fixture(params=OVERRIDES, scope="module")
def model(request):
    built = dsv2.load(["model.vocab_size=2048", *OVERRIDES[request.param]]).model.build(seed=3)
    return built.eval()


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(2048, (length,), generator=generator) for length in LENGTHS]


def batch(rows, side, length, pad=7):
    """Rows padded on one side: tokens and positions, (B, length) each."""
    tokens, positions = torch.full((2, len(rows), length), pad)
    positions.fill_(-1)
    for row, ids in enumerate(rows):
        place = slice(length - len(ids), length) if side == "left" else slice(0, len(ids))
        tokens[row, place], positions[row, place] = ids, torch.arange(len(ids))
    return tokens, positions


def assert_rows(logits, positions, alone):
    for row, expected in enumerate(alone):
        mine = logits[row][positions[row] >= 0]
        assert mine.shape == expected.shape
        assert (mine - expected).abs().max() <= ROW * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cached", [False, True])
def test_padding_changes_nothing(model, rows, side, cached):
    alone = [model(ids[None]).logits[0] for ids in rows]
    tokens, positions = batch(rows, side, 9)
    caches = allocate_model(model, batch_size=4, max_length=9) if cached else None
    logits = model(tokens, positions=positions, caches=caches).logits
    assert logits.isfinite().all()
    assert_rows(logits, positions, alone)
    other, _ = batch(rows, side, 9, pad=-100)  # another id of padding changes no bit
    caches = allocate_model(model, batch_size=4, max_length=9) if cached else None
    assert torch.equal(model(other, positions=positions, caches=caches).logits[positions >= 0], logits[positions >= 0])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
def test_every_cut_of_the_prefill_gives_the_same(model, rows, side, chunk):
    """Chunks in which some rows have nothing, and eight tokens of decoding after them."""
    extra = torch.randint(2048, (4, 8), generator=torch.Generator().manual_seed(6))
    alone = [model(torch.cat((ids, more))[None]).logits[0] for ids, more in zip(rows, extra, strict=True)]
    tokens, positions = batch(rows, side, 9)
    caches = allocate_model(model, batch_size=4, max_length=16)
    parts = [
        model(tokens[:, first : first + chunk], positions=positions[:, first : first + chunk], caches=caches).logits
        for first in range(0, 9, chunk)
    ]
    assert caches.lengths.tolist() == LENGTHS
    decoded = [model(extra[:, [step]], caches=caches).logits for step in range(8)]  # positions follow the cache
    assert caches.lengths.tolist() == [length + 8 for length in LENGTHS]
    places = torch.cat((positions, torch.tensor(LENGTHS)[:, None] + torch.arange(8)), dim=1)
    assert_rows(torch.cat((*parts, *decoded), dim=1), places, alone)


@torch.no_grad()
def test_prompts_of_every_length_around_the_borders_of_blocks(model):
    """Of 16 and of 64, read in chunks of 16, 17 and at once, padded on either side, then one more token each."""
    lengths = [15, 16, 17, 31, 32, 33, 63, 64, 65]
    generator = torch.Generator().manual_seed(8)
    rows = [torch.randint(2048, (length + 1,), generator=generator) for length in lengths]
    alone = [model(ids[None]).logits[0] for ids in rows]
    following = torch.stack([ids[-1] for ids in rows])[:, None]
    for side, chunk in (("left", 16), ("right", 17), ("left", 65)):
        tokens, positions = batch([ids[:-1] for ids in rows], side, 65)
        caches = allocate_model(model, batch_size=9, max_length=66)
        parts = zip(tokens.split(chunk, 1), positions.split(chunk, 1), strict=True)
        logits = [model(part, positions=places, caches=caches).logits for part, places in parts]
        assert caches.lengths.tolist() == lengths
        logits.append(model(following, caches=caches).logits)
        assert_rows(torch.cat(logits, 1), torch.cat((positions, torch.tensor(lengths)[:, None]), 1), alone)


@torch.no_grad()
def test_rows_of_which_some_have_no_tokens_go_on_in_chunks(model):
    """With 0, 3 and 9 tokens cached, chunks of 4 of which rows have 4, 0 and 1: each row as alone."""
    generator = torch.Generator().manual_seed(9)
    rows = [torch.randint(2048, (length,), generator=generator) for length in (8, 11, 14)]
    alone = [model(ids[None]).logits[0] for ids in rows]
    caches = allocate_model(model, batch_size=3, max_length=14)
    done, logits = [0, 0, 0], [[], [], []]
    for counts in ((0, 3, 0), (0, 0, 4), (0, 0, 4), (0, 0, 1), (4, 0, 1), (4, 4, 0), (0, 4, 4)):
        length = max(counts)
        tokens, positions = torch.zeros(3, length, dtype=torch.int64), torch.full((3, length), -1)
        for row, count in enumerate(counts):
            tokens[row, :count] = rows[row][done[row] : done[row] + count]
            positions[row, :count] = torch.arange(done[row], done[row] + count)
            done[row] += count
        out = model(tokens, positions=positions, caches=caches).logits
        assert out.isfinite().all()
        for row, count in enumerate(counts):
            logits[row].append(out[row, :count])
        assert caches.lengths.tolist() == done
    for row, expected in enumerate(alone):
        assert (torch.cat(logits[row]) - expected).abs().max() <= ROW * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_right_in_decoding_too(model, side):
    """Prompts of 2 and 5, eight steps: equal to alone at each; the short row's first new token has position 2."""
    generator = torch.Generator().manual_seed(10)
    rows = [torch.randint(2048, (length,), generator=generator) for length in (10, 13)]
    tokens, positions = batch([rows[0][:2], rows[1][:5]], side, 5)
    results = []
    for pad in (0, 2047):
        caches = allocate_model(model, batch_size=2, max_length=13)
        padded = tokens.masked_fill(positions < 0, pad)
        steps = [model(padded, positions=positions, caches=caches).logits[positions == torch.tensor([[1], [4]])]]
        for step in range(8):
            assert caches.places(1).positions.tolist() == [[2 + step], [5 + step]]
            new = torch.stack((rows[0][[2 + step]], rows[1][[5 + step]]))
            steps.append(model(new, caches=caches).logits[:, 0])
        together = torch.stack(steps, 1)  # (2, 9, V)
        for row, start in enumerate((1, 4)):
            expected = model(rows[row][None]).logits[0, start:]
            assert (together[row] - expected).abs().max() <= ROW * expected.abs().max()
        results.append(together)
    assert torch.equal(*results)


@torch.no_grad()
def test_rows_of_one_cache_are_read_apart_and_decoded_together(model):
    """A pass over rows 1 and 2 of four, one over row 0, a copy of row 2 to row 3, then a pass over all."""
    generator = torch.Generator().manual_seed(11)
    rows = [torch.randint(2048, (length,), generator=generator) for length in (7, 5, 9, 9)]
    rows[3][:8] = rows[2][:8]
    caches = allocate_model(model, batch_size=4, max_length=12)
    tokens, positions = batch([rows[1][:-1], rows[2][:-1]], "left", 8)
    model(tokens, positions=positions, caches=caches.rows(1, 3))
    model(rows[0][None, :-1], caches=caches.rows(0, 1))
    caches.copy(2, 3, 8)
    logits = model(torch.stack([ids[-1] for ids in rows])[:, None], caches=caches).logits[:, 0]
    assert caches.lengths.tolist() == [7, 5, 9, 9]
    for row, ids in enumerate(rows):
        expected = model(ids[None]).logits[0, -1]
        assert (logits[row] - expected).abs().max() <= ROW * expected.abs().max()


@torch.no_grad()
def test_equal_rows_with_positions_are_a_plain_batch(model):
    tokens = torch.randint(2048, (2, 6), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(6).expand(2, 6)
    plain = model(tokens).logits
    assert (model(tokens, positions=positions).logits - plain).abs().max() <= ROW * plain.abs().max()


@torch.no_grad()
def test_a_row_of_padding_alone_is_finite(model):
    tokens, positions = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 1, 2], [-1, -1, -1]])
    for caches in (None, allocate_model(model, batch_size=2, max_length=4)):
        assert model(tokens, positions=positions, caches=caches).logits.isfinite().all()
    assert caches.lengths.tolist() == [3, 0]
    assert model(tokens[:, :1], positions=torch.tensor([[3], [0]]), caches=caches).logits.isfinite().all()


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0, 1, 2], [0, 2, 3]], r"positions\[1\]=\[0, 2, 3\]: must count up by one, -1 for padding"),
        ([[0, 1, 2], [1, 3, -1]], r"positions\[1\]"),
        ([[0, 1, 2], [-2, -1, 0]], None),
        ([[0, 1], [0, 1]], r"positions has shape \(2, 2\)"),
        ([[0.0, 1.0, 2.0]] * 2, r"positions has shape \(2, 3\) torch.float32"),
    ],
)
def test_positions_that_are_none_are_refused(positions, message):
    model = dsv2.load([]).model.build()
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    if message is None:
        model(tokens, positions=torch.tensor(positions))
        return
    with pytest.raises(ValueError, match=message):
        model(tokens, positions=torch.tensor(positions))


@torch.no_grad()
def test_a_row_goes_on_from_its_cache():
    model = dsv2.load([]).model.build()
    caches = allocate_model(model, batch_size=2, max_length=4)
    tokens = torch.zeros(2, 2, dtype=torch.int64)
    model(tokens, positions=torch.tensor([[0, 1], [0, -1]]), caches=caches)
    with pytest.raises(
        ValueError, match=r"positions\[1\]=\[2, 3\]: must count up from 1, the length of its cache, by one"
    ):
        model(tokens, positions=torch.tensor([[2, 3], [2, 3]]), caches=caches)
    with pytest.raises(ValueError, match="5 tokens do not fit in a cache of 4"):
        model(torch.zeros(2, 3, dtype=torch.int64), positions=torch.tensor([[2, 3, 4], [1, 2, 3]]), caches=caches)


# ---- several documents in a row --------------------------------------------------------------------------------------


@torch.no_grad()
def test_documents_of_a_row_see_nothing_of_one_another(model, rows):
    """Every order of documents, with padding at the end, whatever the other documents' ids are."""
    alone = [model(ids[None]).logits[0] for ids in rows]
    order = [2, 0, 3, 1]
    length = sum(LENGTHS) + 3
    tokens = torch.full((2, length), 7)
    positions = torch.full((2, length), -1)
    for row, numbers in enumerate((order, order[::-1])):
        joined = torch.cat([rows[number] for number in numbers])
        tokens[row, : len(joined)] = joined
        positions[row, : len(joined)] = torch.cat([torch.arange(LENGTHS[number]) for number in numbers])
    assert positions[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    logits = model(tokens, positions=positions).logits
    assert logits.isfinite().all()
    for row, numbers in enumerate((order, order[::-1])):
        parts = logits[row, : sum(LENGTHS)].split([LENGTHS[number] for number in numbers])
        for number, part in zip(numbers, parts, strict=True):
            assert (part - alone[number]).abs().max() <= ROW * alone[number].abs().max(), number
    last = slice(sum(LENGTHS) - LENGTHS[order[-1]], sum(LENGTHS))
    others = tokens.clone()
    others[0, : last.start] = (others[0, : last.start] + 5) % 2048
    again = model(others, positions=positions).logits[0, last]
    assert (again - logits[0, last]).abs().max() <= ROW * logits[0, last].abs().max()


def test_gradients_stay_within_their_document(model, rows):
    joined, lengths = torch.cat(rows)[None], LENGTHS
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    states, _ = model.hidden(joined, positions=positions)
    model.zero_grad()
    states[0, sum(lengths[:2]) : sum(lengths[:3])].sum().backward()
    touched = set(model.embedding.grad.abs().sum(1).nonzero()[:, 0].tolist())
    model.zero_grad(set_to_none=True)
    own = set(rows[2].tolist())
    if model.head is None or model.config.tie_embeddings:
        pytest.skip("the head's gradient is in the embedding")
    assert touched <= own | {0}
    assert touched & own


@pytest.mark.parametrize("positions", [[0, 1, 0, 2], [0, 0, 2, 3], [3, 4, 0, 2], [0, -1, 2, 3]])
def test_documents_that_skip_a_place_are_refused(positions):
    model = dsv2.load(["model.num_layers=1"]).model.build()
    with pytest.raises(ValueError, match=r"positions\[0\]=.*: must count up by one, .*; 0 begins another document"):
        model(torch.zeros(1, 4, dtype=torch.int64), positions=torch.tensor([positions]))


def test_documents_and_caches_exclude_one_another():
    model = dsv2.load(["model.num_layers=1"]).model.build()
    caches = allocate_model(model, batch_size=1, max_length=4)
    with pytest.raises(ValueError, match="must count up from 0, the length of its cache, by one"):
        model(torch.zeros(1, 4, dtype=torch.int64), positions=torch.tensor([[0, 1, 0, 1]]), caches=caches)
