"""Two trained runs to explore: they share data and tokenizer, and started from different weights."""

from pathlib import Path

import pytest

import dsv2
from dsv2.explore.trace import Trace
from dsv2.training import fit
from tests.references.traces import TEXT, of


@pytest.fixture
def run(quick: list[str], runs: Path) -> Path:
    """A run with checkpoints at steps 8 and 12, of two layers that route."""
    folder = runs / "train" / "one"
    fit.fit(dsv2.load([*quick, "model.num_layers=3", "optim.lr=0.02"]), folder)
    return folder


@pytest.fixture
def other(quick: list[str], runs: Path) -> Path:
    folder = runs / "train" / "other"
    fit.fit(dsv2.load([*quick, "model.num_layers=3", "optim.lr=0.02", "seed=1"]), folder)
    return folder


@pytest.fixture(scope="session")
def traced() -> Trace:
    return of(TEXT)
