"""Fixtures shared by all tests: own run root, a small corpus, and a run that trains in about a second."""

import importlib.util
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2.caches import cache_folder
from dsv2.printing import warned

# Tests run side by side, so that each has one thread, as do the processes that it starts: float32 sums depend on it.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

pytest.register_assert_rewrite("tests.references")  # so that checks which tests share say what they compared

# Triton decides when a function is defined whether to interpret it, its own as well; torch._dynamo imports Triton.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401


KERNELS = cache_folder("kernels")  # of the user, for all tests: the key of a build is a hash of all that is in it


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's runs, or prepared corpora of others."""
    root = tmp_path / "runs"
    _use(root, tmp_path_factory.mktemp("caches"), monkeypatch)
    warned.clear()
    return root


def _use(root: Path, caches: Path, environment: pytest.MonkeyPatch) -> None:
    """Set the folders of runs and of caches, the latter with a link to the user's compiled kernels."""
    environment.setenv("DSV2_RUNS", str(root))
    environment.setenv("DSV2_CACHE", "off" if KERNELS is None else str(caches))
    if KERNELS is not None:
        KERNELS.mkdir(parents=True, exist_ok=True)
        (caches / "kernels").symlink_to(KERNELS)


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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def trained_once(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run root that holds the trial `toy/smoke/moe/0`; tests take a copy of it, `trained`."""
    import dsv2
    from dsv2.training import fit, machine

    root = tmp_path_factory.mktemp("trained") / "runs"
    sizes = ["benchmarks.cloze_questions=8", "benchmarks.cloze_context=8", "benchmarks.cloze_continuation=4"]
    sizes += ["benchmarks=text", "benchmarks.copying_strings=4", "benchmarks.copying_length=8"]
    run = dsv2.load([*quick, *sizes, "model.vocab_size=320", "study=toy", "scale=smoke", "arm=moe"])
    with pytest.MonkeyPatch.context() as environment:
        _use(root, tmp_path_factory.mktemp("caches"), environment)
        machine.prepare()
        fit.fit(run, root / "toy" / "smoke" / "trials" / run.fingerprint())
    trials = {"trials": [["moe", 0, None, run.fingerprint()]]}
    (root / "toy" / "smoke" / "study.json").write_text(json.dumps(trials))
    return root


@pytest.fixture
def trained(trained_once: Path, runs: Path) -> Path:
    """A trained run with benchmarks, the trial `toy/smoke/moe/0` under `runs`, to be changed at will."""
    shutil.copytree(trained_once, runs)
    (trial,) = (runs / "toy" / "smoke" / "trials").iterdir()
    return trial


@pytest.fixture
def imported(trained: Path, tmp_path: Path) -> Path:
    """The same model exported and imported again; its tokenizer now begins texts with a token of its own."""
    import tokenizers

    from dsv2.commands.huggingface import export_hf, import_hf

    export_hf(trained, tmp_path / "hf")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    backend.add_special_tokens(["<begin>"])
    backend.save(str(tmp_path / "hf" / "tokenizer.json"))
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<begin>", "add_bos_token": True}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    import_hf(tmp_path / "hf", tmp_path / "imported")
    return tmp_path / "imported"


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with crashing(step)`: a run within raises OSError once that step is logged, before it is saved."""
    from dsv2.training.callbacks.recorder import Recorder  # imports lightning, which takes seconds

    inner = Recorder.on_train_batch_end

    @contextmanager
    def crashing(step: int) -> Iterator[None]:
        def crash(self: Recorder, trainer: Any, *arguments: Any) -> None:
            inner(self, trainer, *arguments)
            if trainer.global_step == step:
                raise OSError("the machine went away")

        with monkeypatch.context() as broken:
            broken.setattr(Recorder, "on_train_batch_end", crash)
            with pytest.raises(OSError, match="the machine went away"):
                yield

    return crashing
