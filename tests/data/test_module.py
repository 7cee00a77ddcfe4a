"""Real Lightning trainers: what a resumed run sees is what it would have seen."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from dsv2.data.corpora import Files
from dsv2.data.module import Stream
from dsv2.data.source import Batch, Source


class Growing:
    """2 sequences in the first steps, 3 from step 4 on."""

    num_steps = 9

    def batch_size(self, step: int) -> int:
        return 2 if step < 4 else 3

    def first_sequence(self, step: int) -> int:
        return sum(self.batch_size(earlier) for earlier in range(step))


class Toy(L.LightningModule):
    """Counts nothing, learns something, remembers what it saw."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(vocab_size, 4), nn.Linear(4, vocab_size))
        self.seen: list[tuple[int, Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert isinstance(batch, Batch)
        self.seen.append((self.global_step, batch.inputs.clone()))
        return nn.functional.cross_entropy(self.net(batch.inputs).flatten(0, 1), batch.targets.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {"max_steps": Growing.num_steps, "max_epochs": -1}
    return L.Trainer(
        **defaults | settings,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@pytest.fixture
def source(corpus_config: Files.Config) -> Source:
    return corpus_config.open(sequence_length=16, seed=3, validation_tokens=20 * 16)


def seen_by(source: Source, folder: Path, ckpt: Path | None = None, **settings: Any) -> tuple[Toy, L.Trainer]:
    torch.manual_seed(0)
    model, lightning = Toy(source.vocab_size), trainer(folder, **settings)
    lightning.fit(model, datamodule=Stream(source, Growing()), ckpt_path=ckpt)
    return model, lightning


def test_a_run_sees_the_schedule(source: Source, tmp_path: Path) -> None:
    model, lightning = seen_by(source, tmp_path)
    assert [step for step, _ in model.seen] == list(range(9))
    assert lightning.global_step == 9
    schedule = Growing()
    for step, inputs in model.seen:
        expected = source.train(schedule.first_sequence(step), schedule.batch_size(step))
        assert torch.equal(inputs, expected.inputs)


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
@pytest.mark.parametrize("after_fit", [True, False], ids=["saved after fit", "saved in mid-run"])
def test_a_resumed_run_sees_exactly_the_rest(source: Source, tmp_path: Path, stop: int, after_fit: bool) -> None:
    whole, _ = seen_by(source, tmp_path)
    path = tmp_path / "saved.ckpt"
    if after_fit:
        _, stopped = seen_by(source, tmp_path, max_steps=stop)
        stopped.save_checkpoint(path)
    else:

        class Save(L.Callback):
            def on_train_batch_end(self, lightning: L.Trainer, *_: object) -> None:
                if lightning.global_step == stop:
                    lightning.save_checkpoint(path)

        seen_by(source, tmp_path, callbacks=[Save()])
    resumed, lightning = seen_by(source, tmp_path, ckpt=path)
    assert [step for step, _ in resumed.seen] == list(range(stop, 9))
    for (_, got), (_, expected) in zip(resumed.seen, whole.seen[stop:], strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, expected)
    assert lightning.global_step == 9


def test_reading_takes_no_random_numbers(source: Source, tmp_path: Path) -> None:
    stream = Stream(source, Growing())
    stream.trainer = trainer(tmp_path)
    before = torch.get_rng_state()
    assert len(list(stream.train_dataloader())) == 9
    assert torch.equal(torch.get_rng_state(), before)


class Rank:
    """As much of a trainer as the stream reads."""

    global_step, accumulate_grad_batches = 0, 1

    def __init__(self, rank: int, world: int) -> None:
        self.distributed_sampler_kwargs = {"num_replicas": world, "rank": rank}


def test_processes_share_a_step(source: Source) -> None:
    class Even(Growing):
        def batch_size(self, step: int) -> int:
            return 4

    def batches(rank: int, world: int) -> list[Tensor]:
        stream = Stream(source, Even())
        stream.trainer = Rank(rank, world)  # type: ignore[assignment]
        return [batch.inputs for batch in stream.train_dataloader()]

    shared = [torch.cat(parts) for parts in zip(batches(0, 2), batches(1, 2), strict=True)]
    assert all(torch.equal(got, expected) for got, expected in zip(shared, batches(0, 1), strict=True))
    with pytest.raises(ValueError, match="batch size 4 of step 0: must be a multiple of the 3 shares"):
        batches(0, 3)


def test_gradient_accumulation_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches=2: must be 1"):
        seen_by(source, tmp_path, accumulate_grad_batches=2)
