"""`python -m dsv2 import-hf PATH OUT` and `export-hf RUN OUT`.

An imported model is a run directory without training: `config.yaml` holds its typed config under `model` and other
keys of its `config.json` under `checkpoint`; `model.safetensors` holds the weights under our names. The tokenizer
files are copied beside them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from dsv2.config import plain
from dsv2.data.tokenizer import load_tokenizer
from dsv2.interop.hf_config import read_json
from dsv2.interop.hf_keys import TOKEN_IDS
from dsv2.interop.huggingface import from_hf, to_hf
from dsv2.printing import warn
from dsv2.storage.files import new_directory, require_free
from dsv2.storage.rundir import CHAT_TEMPLATE_FILE, CONFIG, TOKENIZER, TOKENIZER_SETTINGS, WEIGHTS
from dsv2.training.saved import SavedRun, open_run

TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_SETTINGS,
    CHAT_TEMPLATE_FILE,
    "special_tokens_map.json",
    "generation_config.json",
)  # copied if present
KEPT = ("max_position_embeddings", *TOKEN_IDS)  # config.json keys under checkpoint


def import_hf(path: str | Path, out: str | Path) -> None:
    """Convert the DeepseekV2 checkpoint directory `path` to the run directory `out`. Raises ValueError if it exists."""
    require_free(Path(out))
    model, hf_config = from_hf(path), read_json(Path(path) / "config.json")
    files = [file for name in TOKENIZER_FILES if (file := Path(path) / name).is_file() and _readable(file)]
    for file in files:
        read_json(file)  # what is copied is what it should be
    checkpoint = {key: hf_config[key] for key in KEPT if hf_config.get(key) is not None}
    with new_directory(out) as folder:
        values = {"model": plain(model.config), "checkpoint": checkpoint}
        (folder / CONFIG).write_text(yaml.safe_dump(values, sort_keys=False))
        save_file(model.state_dict(), folder / WEIGHTS)
        for file in files:
            shutil.copyfile(file, folder / file.name)
        load_tokenizer(folder, model.config.vocab_size)


def export_hf(run: str | Path, out: str | Path) -> None:
    """Write model and tokenizer of `run` as the DeepseekV2 checkpoint `out`. Raises ValueError if it exists."""
    require_free(Path(out))
    opened = open_run(run)
    if opened.imported:
        kept = (opened.folder / name for name in TOKENIZER_FILES)
        files = {path.name: path.read_bytes() for path in kept if path.is_file() and _readable(path)}
        to_hf(opened.model, out, settings=opened.checkpoint, files=files)
        return
    settings, files = _tokenizer(opened)
    if opened.model_config.rope.limit is None:
        settings["max_position_embeddings"] = opened.longest
    to_hf(opened.model, out, settings=settings, files=files)


def _readable(file: Path) -> bool:
    """Whether an optional file can be opened; says so if it cannot."""
    try:
        file.open("rb").close()
    except OSError as error:
        warn(f"{file} is left out. {error.strerror}")
        return False
    return True


def _tokenizer(run: SavedRun) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return config.json keys and files with which transformers loads the run's tokenizer; empty without text."""
    try:
        tokenizer = run.tokenizer
    except ValueError as error:
        warn(f"exported without a tokenizer. {error}")
        return {}, {}
    settings = {**tokenizer.settings, "model_max_length": run.longest}
    files = {TOKENIZER: tokenizer.to_json(), TOKENIZER_SETTINGS: json.dumps(settings, indent=2) + "\n"}
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
    return ids, {name: text.encode() for name, text in files.items()}
