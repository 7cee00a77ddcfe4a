"""Fixtures shared by all tests: own run root, a small corpus, and a run that trains in about a second."""

import random
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.references")  # so that checks which tests share say what they compared


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's runs."""
    root = tmp_path / "runs"
    monkeypatch.setenv("DSV2_RUNS", str(root))
    return root


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The glob of a small text corpus of 24 documents."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "st", "nd")]
    for number in range(24):
        sentences = (" ".join(draw.choices(words, k=9)).capitalize() + "." for _ in range(60))
        (folder / f"{number}.txt").write_text("\n".join(sentences))
    return f"{folder}/*.txt"


@pytest.fixture
def quick(corpus: str) -> list[str]:
    """Overrides of a run of 12 steps on `corpus`, logged every 2, validated and saved every 4."""
    return [
        "data=files",
        f"data.path={corpus}",
        "data.vocab_size=300",
        "model.dim=16",
        "model.num_layers=2",
        "model.shape.num_experts=8",
        "model.shape.top_k=2",
        "model.shape.num_devices=4",
        "model.shape.expert_dim=8",
        "model.shape.ffn_dim=24",
        "trainer.sequence_length=32",
        "trainer.batch.size=4",
        "trainer.tokens=1536",
        "trainer.validation_tokens=512",
        "trainer.validate_every=4",
        "trainer.log_every=2",
        "trainer.checkpoint_every=4",
        "trainer.progress=false",
        "trainer.accelerator=cpu",
        "logger.wandb.mode=disabled",
    ]
