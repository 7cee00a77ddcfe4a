"""Prepared corpora on disk: whole or not there, made once, whoever asks and whoever is killed."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsv2.data import corpora, store
from dsv2.data.corpora import Files
from dsv2.data.documents import Document
from dsv2.data.packing import PackedText
from dsv2.data.tokenizer import END_ID
from dsv2.storage.files import PARTIAL
from dsv2.storage.locks import hold

OPEN = """
import sys
from dsv2.data.corpora import Files
source = Files.Config(path=sys.argv[1], vocab_size=300, val_ratio=0.2).open(
    sequence_length=16, seed=0, validation_tokens=64
)
print(source.identity["trained_tokenizer"], source.train_tokens)
"""


def opened(corpus_config: Files.Config) -> PackedText:
    return corpus_config.open(sequence_length=16, seed=0, validation_tokens=64)


def folders(runs: Path) -> list[Path]:
    return [path for path in (runs / ".data").iterdir() if path.is_dir()]


def start(corpus_config: Files.Config) -> subprocess.Popen:
    assert corpus_config.path is not None
    command = [sys.executable, "-c", OPEN, corpus_config.path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def texts_of(split: store.Split, source: PackedText) -> list[str]:
    ends = [*split.starts[1:], len(split.tokens)]
    assert all(split.tokens[end - 1] == END_ID for end in ends)
    assert source.tokenizer is not None
    return [source.tokenizer.decode(split.tokens[a : b - 1]) for a, b in zip(split.starts, ends, strict=True)]


def test_every_document_is_on_one_side_word_for_word(corpus_config: Files.Config) -> None:
    source = opened(corpus_config)
    train, val = (texts_of(split, source) for split in (source.store.train, source.store.val))
    assert set(train).isdisjoint(val)
    assert sorted(train + val) == sorted(document.text for document in corpus_config.documents())
    domain = {document.text: document.domain for document in corpus_config.documents()}
    for split, texts in ((source.store.train, train), (source.store.val, val)):
        assert [source.domains[index] for index in split.domains] == [domain[text] for text in texts]


def test_the_manifest_counts_what_there_is(corpus_config: Files.Config) -> None:
    source = opened(corpus_config)
    counts = source.store.manifest["splits"]
    assert counts["train"]["tokens"] == source.train_tokens
    assert counts["train"]["documents"] + counts["val"]["documents"] == 40
    size = sum(len(document.text.encode()) for document in corpus_config.documents())
    assert counts["train"]["bytes"] + counts["val"]["bytes"] == size


def test_no_flipped_bit_of_the_manifest_is_believed(corpus_config: Files.Config) -> None:
    source = opened(corpus_config)
    before, manifest = source.record(), source.store.folder / store.MANIFEST
    whole, chance = manifest.read_bytes(), random.Random(0)
    for _ in range(100):
        place = chance.randrange(len(whole))
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        found = store.find_store(corpus_config.identity(), [manifest.parents[2]], corpus_config.vocab_size)
        assert found is None or {key: found.manifest[key] for key in store.KEYS} == source.store.manifest
    assert opened(corpus_config).record() == before


def test_a_manifest_without_a_checksum_is_read_if_nothing_is_missing(corpus_config: Files.Config) -> None:
    source = opened(corpus_config)
    manifest, values = source.store.folder / store.MANIFEST, source.store.manifest
    manifest.write_text(json.dumps(values))
    written = manifest.stat().st_mtime_ns
    assert opened(corpus_config).record() == source.record()
    assert manifest.stat().st_mtime_ns == written
    manifest.write_text(json.dumps({key: value for key, value in values.items() if key != "domains"}))
    assert opened(corpus_config).record() == source.record()


def test_the_tokenizer_sees_the_training_split_only(corpus_config: Files.Config, tmp_path: Path) -> None:
    source = opened(corpus_config)
    held_out = texts_of(source.store.val, source)
    path = tmp_path / "texts" / "texts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row for row in rows if row["text"] not in held_out]
    # Everything that was held out goes, but for one document a domain that keeps both sides.
    last = {row["domain"]: row for row in rows if row["text"] in held_out}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *last.values()]))
    assert opened(corpus_config).identity["trained_tokenizer"] == source.identity["trained_tokenizer"]


def test_a_corpus_is_prepared_once(corpus_config: Files.Config, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(corpus_config)
    monkeypatch.setattr(store, "_prepare", lambda *_: pytest.fail("prepared again"))
    again = opened(corpus_config)
    np.testing.assert_array_equal(first.store.train.tokens, again.store.train.tokens)
    assert len(folders(runs)) == 1
    assert first.store.train.tokens.dtype == np.uint16


# ---- the copy that stores share --------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows by the folder of every corpus that is prepared and not copied."""
    made, prepare = list[Path](), store._prepare

    def counted(folder: Path, *rest: Any) -> None:
        made.append(folder)
        prepare(folder, *rest)

    monkeypatch.setattr(store, "_prepare", counted)
    return made


def test_another_store_copies_what_one_prepared(
    corpus_config: Files.Config, cache: Path, prepared: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(corpus_config)
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "other"))
    again = opened(corpus_config)
    assert len(prepared) == 1
    assert again.store.folder.is_relative_to(tmp_path / "other")
    assert again.identity == first.identity
    np.testing.assert_array_equal(first.store.train.tokens, again.store.train.tokens)
    opened(dataclasses.replace(corpus_config, vocab_size=290))
    assert len(prepared) == 2
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("damage", ["flipped", "gone", "another", "no JSON", "a folder"])
def test_a_damaged_copy_is_not_used_and_made_again(
    corpus_config: Files.Config,
    cache: Path,
    prepared: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    before = opened(corpus_config).train(0, 4)
    other = opened(dataclasses.replace(corpus_config, vocab_size=290)).store.folder
    kept = cache / store.digest(corpus_config.identity())
    if damage == "flipped":
        data = bytearray((kept / "train.bin").read_bytes())
        data[7] ^= 1
        (kept / "train.bin").write_bytes(data)
    elif damage == "gone":
        (kept / "val.bin").unlink()
    elif damage == "another":
        shutil.rmtree(kept)
        shutil.copytree(other, kept)
    elif damage == "no JSON":
        (kept / "manifest.json").write_text("[")
    else:
        (kept / "val.bin").unlink()
        (kept / "val.bin").mkdir()
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "other"))
    assert torch.equal(opened(corpus_config).train(0, 4).inputs, before.inputs)
    assert len(prepared) == 3
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "third"))
    assert torch.equal(opened(corpus_config).train(0, 4).inputs, before.inputs)
    assert len(prepared) == 3


def test_a_cache_that_cannot_be_written_fails_no_run(
    corpus_config: Files.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSV2_CACHE", str(tmp_path / "file" / "cache"))
    assert opened(corpus_config).train_tokens
    assert "data: no copy was kept for other stores in" in capsys.readouterr().err


def test_where_copies_lie(corpus_config: Files.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DSV2_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened(corpus_config)
    assert len(list((tmp_path / "xdg" / "dsv2" / "corpora").glob("*/manifest.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "other"))
    opened(corpus_config)
    assert len(list((tmp_path / "home" / ".cache" / "dsv2" / "corpora").glob("*/manifest.json"))) == 1


# ---- one store -------------------------------------------------------------------------------------------------------


def test_other_settings_are_other_stores(corpus_config: Files.Config, runs: Path) -> None:
    for change in ({}, {"vocab_size": 290}, {"val_ratio": 0.3}):
        opened(dataclasses.replace(corpus_config, **change))
    assert len(folders(runs)) == 3


def test_large_vocabularies_take_four_bytes(corpus_config: Files.Config) -> None:
    assert opened(dataclasses.replace(corpus_config, vocab_size=65_536)).store.train.tokens.dtype == np.uint16
    assert opened(dataclasses.replace(corpus_config, vocab_size=65_537)).store.train.tokens.dtype == np.uint32


@pytest.mark.parametrize("name", store.FILES)
def test_one_flipped_byte_is_found(
    corpus_config: Files.Config, runs: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = opened(corpus_config).train(0, 4)
    path = folders(runs)[0] / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert (opened(corpus_config).train(0, 4).inputs == before.inputs).all()
    assert "is damaged and will be prepared again" in capsys.readouterr().err


def test_a_failed_preparation_leaves_nothing(
    corpus_config: Files.Config, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_sealed", full)
        with pytest.raises(OSError, match="No space left"):
            opened(corpus_config)
    assert folders(runs) == []
    opened(corpus_config)


def test_a_corpus_that_changes_meanwhile_is_an_error(
    corpus_config: Files.Config, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus_config.content_hash()
    monkeypatch.setattr(corpora, "read", lambda *_: (Document(f"other {n}", "even") for n in range(40)))
    with pytest.raises(RuntimeError, match="the corpus changed while it was being prepared; start again"):
        opened(corpus_config)
    assert folders(runs) == []


@pytest.mark.slow
def test_waiting_is_said(corpus_config: Files.Config, runs: Path) -> None:
    opened(corpus_config)
    folder = folders(runs)[0]
    (folder / store.MANIFEST).unlink()
    with hold(folder.with_suffix(".lock"), "the data"):
        process = start(corpus_config)
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith(f"data: process {os.getpid()} (")
        assert " has held the data since " in said
        assert said.endswith(" ago; waiting for it\n")
    assert process.wait(60) == 0


@pytest.mark.slow
def test_two_processes_at_once_make_one_store(corpus_config: Files.Config, runs: Path) -> None:
    processes = [start(corpus_config) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(folders(runs)) == 1


@pytest.mark.slow
def test_a_killed_preparation_is_done_again(corpus_config: Files.Config, runs: Path, tmp_path: Path) -> None:
    slow = tmp_path / "sitecustomize.py"
    slow.write_text("import time, dsv2.data.store as s\ns.write_sealed = lambda *_: time.sleep(60)\n")
    assert corpus_config.path is not None
    process = subprocess.Popen(
        [sys.executable, "-c", f"exec(open({str(slow)!r}).read())\n{OPEN}", corpus_config.path],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(runs.glob(f".data/*{PARTIAL}/documents.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(folders(runs)) == 1  # what the kill left: no name of a key
    source = opened(corpus_config)
    assert [path.name for path in folders(runs)] == [store.digest(corpus_config.identity())]
    assert source.train_tokens == source.store.manifest["splits"]["train"]["tokens"]
