"""The line that a terminal shows while a run trains: tokens, rate, time left and loss."""

import contextlib
import io
from types import SimpleNamespace

import pytest
import torch

from dsv2.training.callbacks.progress import ProgressBar
from dsv2.training.schedule import BatchRamp

BATCHES = BatchRamp.Config(size=4).build(tokens=4096, sequence_length=32)  # 32 steps of 128 tokens


class Terminal(io.StringIO):
    """What was written to stderr, and a clock of its own."""

    now = 0.0

    @property
    def line(self) -> str:
        """The line as it stands now."""
        return self.getvalue().rpartition("\r")[2].rstrip()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setattr("tqdm.std.time", lambda: made.now)
    return made


def train(terminal: Terminal, bar: ProgressBar, first: int, last: int, seconds: float) -> None:
    """Steps `first` to `last` of `seconds` each; the loss of step n is n."""
    trainer = SimpleNamespace(global_step=first - 1)
    with contextlib.redirect_stderr(terminal):
        bar.on_train_start(trainer, None)
    for trainer.global_step in range(first, last + 1):
        terminal.now += seconds
        losses = SimpleNamespace(total=torch.tensor(float(trainer.global_step)))
        bar.on_train_batch_end(trainer, None, {"step": SimpleNamespace(losses=losses)})


def test_the_line_says_how_far_how_fast_and_how_long_still(terminal: Terminal) -> None:
    """11 of 32 steps at 2 seconds each: 64 tokens per second, 21 steps to go."""
    train(terminal, ProgressBar(BATCHES), 1, 11, 2.0)
    head, _, tail = terminal.line.partition("|")
    assert head.strip() == "34%"
    assert tail.endswith("| 1.41k/4.10k [00:22<00:42, 64.0tok/s, loss=10.000]")


def test_a_resumed_run_goes_on_where_it_was_and_its_rate_is_its_own(terminal: Terminal) -> None:
    train(terminal, ProgressBar(BATCHES), 17, 24, 4.0)
    assert terminal.line.startswith(" 75%|")
    assert terminal.line.endswith("| 3.07k/4.10k [00:32<00:32, 32.0tok/s, loss=20.000]")


def test_tokens_are_counted_under_a_ramp(terminal: Terminal) -> None:
    """Steps of 2, 2, 3, 3 sequences, then 4."""
    batches = BatchRamp.Config(size=4, start=2, ramp_tokens=8).build(tokens=40, sequence_length=1)
    train(terminal, ProgressBar(batches), 1, 5, 1.0)
    assert terminal.line.startswith(" 37%|")
    assert "| 14.0/38.0 [00:05<" in terminal.line


def test_a_quick_run_does_not_flood_the_terminal(terminal: Terminal) -> None:
    train(terminal, ProgressBar(BATCHES), 1, 32, 0.01)
    assert terminal.getvalue().count("\r") <= 2


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_the_line_is_ended_before_others_write(terminal: Terminal, end: str) -> None:
    bar = ProgressBar(BATCHES)
    train(terminal, bar, 1, 32, 1.0)
    assert not terminal.getvalue().endswith("\n")
    getattr(bar, end)()
    last = terminal.getvalue().rpartition("\r")[2]
    assert last.startswith("100%|")
    assert last.endswith("| 4.10k/4.10k [00:32<00:00, 128tok/s, loss=30.000]\n")


def test_a_run_that_fails_before_its_first_step_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressBar(BATCHES).on_exception()
    assert capsys.readouterr().err == ""
