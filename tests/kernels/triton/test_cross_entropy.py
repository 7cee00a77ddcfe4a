"""The head's mean loss in Triton beside the specification: chunks of tokens, blocks of the vocabulary."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.cross_entropy import NOT_SCORED, head_nats
from dsv2.kernels.triton import cross_entropy
from tests.references.fences import DEVICE
from tests.references.kernels import normal
from tests.references.tolerances import BFLOAT16, FLOAT16, FLOAT32_MODULE
from tests.references.triton import agrees, traces

pytestmark = pytest.mark.usefixtures("triton_ops")


def draw(tokens: int, vocabulary: int) -> Tensor:
    """Targets, of which the first is scored and about a third are not."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[1:].masked_fill_(torch.rand(tokens - 1, generator=generator) < 0.3, NOT_SCORED)
    return targets.to(DEVICE)


def specified(x: Tensor, w: Tensor, targets: Tensor) -> Tensor:
    return reference.token_nats(x @ w.t(), targets).sum() / (targets != NOT_SCORED).sum()


def check(x: Tensor, w: Tensor, targets: Tensor, tolerance: float = FLOAT32_MODULE) -> None:
    agrees(lambda x, w: head_nats(x, w, targets), lambda x, w: specified(x, w, targets), x, w, tolerance=tolerance)


@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (7, 5), (3, 9000), (20, 130)])
def test_the_mean_loss_of_a_head_is_that_of_its_logits(tokens: int, vocabulary: int) -> None:
    check(normal(tokens, 9), normal(vocabulary, 9, seed=1), draw(tokens, vocabulary))


def test_gradients_add_up_over_chunks_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 tokens, the last of 1; blocks of 16 of the vocabulary, the last of 5."""
    for name, value in (("CHUNK", 4 * 37), ("FEWEST", 4), ("BLOCK", 16)):
        monkeypatch.setattr(cross_entropy, name, value)
    check(normal(9, 6), normal(37, 6, seed=1), draw(9, 37))


def test_logits_of_one_chunk_alone_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 1)
    monkeypatch.setattr(cross_entropy, "FEWEST", 2)
    sizes = []
    empty = torch.empty
    with monkeypatch.context() as patch:  # undone before the fences are, not after
        patch.setattr(torch, "empty", lambda *size, **options: sizes.append(size) or empty(*size, **options))
        head_nats(normal(9, 6).to(DEVICE), normal(37, 6).to(DEVICE), draw(9, 37))
    assert (2, 37) in sizes
    assert not [size for size in sizes if size[-1] == 37 and size[0] != 2]


def test_leading_dims_and_layouts_are_free() -> None:
    targets = draw(6, 11).view(2, 3)
    agrees(
        lambda x, w: head_nats(x.transpose(0, 1), w.t(), targets),
        lambda x, w: specified(x.transpose(0, 1), w.t(), targets),
        *(normal(3, 2, 5), normal(5, 11, seed=1)),
        tolerance=FLOAT32_MODULE,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, FLOAT16), (torch.bfloat16, BFLOAT16)])
def test_logits_in_half_precision_are_widened(dtype: torch.dtype, tolerance: float) -> None:
    check(normal(7, 16).to(dtype), normal(40, 16, seed=1).to(dtype), draw(7, 40), tolerance=tolerance)


def test_large_logits_neither_overflow_nor_lose_precision() -> None:
    x, w, targets = torch.tensor([[100.0], [-100.0]]), torch.tensor([[3.0], [-3.0], [2.9]]), torch.tensor([2, 1])
    check(x, w, targets.to(DEVICE))


def test_no_scored_target_has_no_mean_and_moves_nothing() -> None:
    x, w = normal(2, 3).to(DEVICE).requires_grad_(), normal(4, 3).to(DEVICE).requires_grad_()
    loss = head_nats(x, w, torch.full((2,), NOT_SCORED, device=DEVICE))
    loss.backward()
    assert loss.isnan()
    assert not x.grad.any()
    assert not w.grad.any()


def test_a_target_outside_of_the_vocabulary_is_seen_in_the_loss() -> None:
    """A check would wait for the GPU."""
    for wrong in (4, -1):
        assert head_nats(normal(2, 3).to(DEVICE), normal(4, 3).to(DEVICE), torch.tensor([0, wrong]).to(DEVICE)).isnan()


def test_without_gradients_the_loss_is_the_same() -> None:
    x, w, targets = normal(7, 9).to(DEVICE), normal(33, 9, seed=1).to(DEVICE), draw(7, 33)
    with torch.no_grad():
        quick = head_nats(x, w.requires_grad_(), targets)
    assert torch.equal(quick, head_nats(x, w, targets).detach())


def test_shapes_can_be_traced_without_data() -> None:
    x, w = normal(3, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    traces(torch.ops.dsv2_triton.head_loss, x, w, draw(3, 5), NOT_SCORED, True)
