"""Hugging Face folders and corpora from strangers."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dsv2.__main__ import main as dsv2
from dsv2.data.store import find_store
from dsv2.storage.sealed import read_sealed, write_sealed
from dsv2.train import main as train
from tests.references.traps import Payload, Trap, pickled, saved_twin

# ---- Hugging Face folders --------------------------------------------------------------------------------------------


def keys(**changes: Any) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def sharded(name: str) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        (folder / "model.safetensors").rename(trap.outside / "model.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            trap.text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        )

    return change


def only_pickle(trap: Trap, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, folder / "pytorch_model.bin")


def is_link(name: str, target: str) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(trap.text(target))

    return change


FOLDERS: dict[str, Callable[[Trap, Path], None]] = {
    "only a pickle": only_pickle,
    "pickle under another name": lambda trap, folder: pickled(folder / "model.safetensors"),
    "zip under another name": lambda trap, folder: torch.save({"x": Payload()}, folder / "model.safetensors"),
    "header that is too long": lambda trap, folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64) and None,
    "tensors of strangers": lambda trap, folder: save_file({"x": torch.ones(1)}, folder / "model.safetensors"),
    "shard above": sharded("../outside/model.safetensors"),
    "shard elsewhere": sharded("OUTSIDE/model.safetensors"),
    "shard is the folder": sharded(".."),
    "another type with code": keys(model_type="evil", auto_map={"AutoModel": "hostile_payload.run"}),
    "weights are a link": is_link("model.safetensors", "OUTSIDE/secret.txt"),
    "config is a link": is_link("config.json", "OUTSIDE/secret.json"),
    "tokenizer is a link": is_link("tokenizer.json", "OUTSIDE/secret.json"),
    "settings are a link": is_link("tokenizer_config.json", "OUTSIDE/secret.json"),
    "generation is a link": is_link("generation_config.json", "../outside/secret.json"),
    "generation is no JSON": lambda trap, folder: (folder / "generation_config.json").write_bytes(b"x") and None,
    "config is too deep": lambda trap, folder: (folder / "config.json").write_text("[" * 100_000) and None,
    "tokenizer is none": lambda trap, folder: (folder / "tokenizer.json").write_text('{"model": 1}') and None,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hugging_face_folder_is_its_own(trap: Trap, kind: str) -> None:
    folder = saved_twin(trap)
    FOLDERS[kind](trap, folder)
    trap.refused(dsv2, "import-hf", folder, "runs/imported")
    assert not (trap.runs / "imported").exists()


def test_code_beside_weights_is_ignored(trap: Trap) -> None:
    """A cache of the Hub, which links into its `blobs`, with a model that brings Python along."""
    folder = saved_twin(trap)
    keys(auto_map={"AutoModel": "modeling_evil.Evil"}, architectures=["Evil"])(trap, folder)
    (folder / "modeling_evil.py").write_text("import hostile_payload\nhostile_payload.run()\n")
    (trap.here / "cache" / "snapshots").mkdir(parents=True)
    (trap.here / "cache" / "blobs").mkdir()
    (trap.here / "cache" / "snapshots" / "1").mkdir()
    for file in folder.iterdir():
        file.rename(trap.here / "cache" / "blobs" / file.name)
        (trap.here / "cache" / "snapshots" / "1" / file.name).symlink_to(f"../../blobs/{file.name}")
    before = trap.files(store=False)
    assert trap.call(dsv2, "import-hf", trap.here / "cache" / "snapshots" / "1", "runs/imported") == 0
    trap.nothing_happened(before)
    assert not [*(trap.runs / "imported").glob("*.py")]


# ---- corpora ---------------------------------------------------------------------------------------------------------


def corpus(trap: Trap, **files: str | bytes) -> Path:
    folder = trap.here / "texts"
    for number in range(4):
        trap.file(f"text {number} " * 200, f"texts/{number}.txt")
    for name, content in files.items():
        trap.file(content, f"texts/{name.replace('_', '.')}")
    return folder


def linked_text(trap: Trap) -> list[str]:
    (corpus(trap) / "z.txt").symlink_to(trap.outside / "secret.txt")
    return ["data=files", "data.path=texts/*.txt"]


def linked_folder(trap: Trap) -> list[str]:
    (corpus(trap) / "more").symlink_to(trap.outside)
    return ["data=files", "data.path=texts/*/*.txt"]


def deep_json(trap: Trap) -> list[str]:
    corpus(trap, a_jsonl='{"text": ' + "[" * 100_000)
    return ["data=files", "data.path=texts/*.jsonl"]


def pickled_parquet(trap: Trap) -> list[str]:
    corpus(trap, a_parquet=b"PAR1" + pickle.dumps(1) + b"PAR1")
    return ["data=files", "data.path=texts/*.parquet"]


def unpickled(trap: Trap) -> list[str]:
    pickled(corpus(trap) / "a.pkl")
    return ["data=files", "data.path=texts/*"]


def scripted(trap: Trap) -> list[str]:
    corpus(trap, texts_py="import hostile_payload\nhostile_payload.run()\n")
    return ["data=huggingface", "data.path=texts"]


def leading_out(trap: Trap) -> list[str]:
    corpus(trap, README_md="---\nconfigs:\n- config_name: default\n  data_files: OUTSIDE/secret.txt\n---\n")
    return ["data=huggingface", "data.path=texts"]


def linked_dataset(trap: Trap) -> list[str]:
    linked_text(trap)
    return ["data=huggingface", "data.path=texts"]


CORPORA = [linked_text, linked_folder, deep_json, pickled_parquet, unpickled, scripted, leading_out, linked_dataset]


@pytest.mark.parametrize("make", CORPORA)
def test_a_corpus_is_the_text_in_its_folder(trap: Trap, quick: list[str], make: Callable[[Trap], list[str]]) -> None:
    trap.patch.setenv("HF_HOME", str(trap.runs / "hub"))
    trap.refused(train, *quick, *make(trap))


@pytest.mark.parametrize("dtype", ["O", "object", "|V8", "f8", 7, None])
def test_a_prepared_corpus_holds_token_ids(trap: Trap, trial: Path, dtype: Any) -> None:
    """Of the dtype `object`, the bytes of a file would be taken for addresses in memory."""
    (folder,) = (trap.runs / ".data").glob("*/")
    manifest = read_sealed(folder / "manifest.json")
    write_sealed(folder / "manifest.json", manifest | {"dtype": dtype})
    assert find_store(manifest["identity"], [trap.runs], 300) is None


def test_the_tables_of_a_prepared_corpus_are_no_pickles(trap: Trap, trial: Path) -> None:
    (folder,) = (trap.runs / ".data").glob("*/")
    np.savez(folder / "documents.npz", train_starts=np.array([Payload()], dtype=object))
    manifest = read_sealed(folder / "manifest.json")
    manifest["files"]["documents.npz"] = hashlib.sha256((folder / "documents.npz").read_bytes()).hexdigest()
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(ValueError):  # noqa: PT011
        find_store(manifest["identity"], [trap.runs], 300)
    assert not trap.mark.exists()
