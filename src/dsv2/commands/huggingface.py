"""`python -m dsv2 import-hf PATH OUT` and `export-hf RUN OUT`.

A run directory holds `config.yaml`, whose `model` is the typed config, and `model.safetensors` under our own names.
"""

import shutil
from pathlib import Path

import yaml
from safetensors.torch import save_file

from dsv2.config import plain
from dsv2.interop.huggingface import from_hf, to_hf
from dsv2.storage.files import new_directory, require_free
from dsv2.training.saved import CONFIG, WEIGHTS, load_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # copied where they are, for texts to be evaluated on


def import_hf(path: str | Path, out: str | Path) -> None:
    """Turn the DeepseekV2 checkpoint directory `path` into a run directory `out`. ValueError where `out` is taken."""
    require_free(Path(out))
    model = from_hf(path)
    with new_directory(out) as folder:
        (folder / CONFIG).write_text(yaml.safe_dump({"model": plain(model.config)}, sort_keys=False))
        save_file(model.state_dict(), folder / WEIGHTS)
        for name in TOKENIZER_FILES:
            if (file := Path(path) / name).is_file():
                shutil.copyfile(file, folder / name)


def export_hf(run: str | Path, out: str | Path) -> None:
    """Write the model of run directory `run` as a DeepseekV2 checkpoint `out`. ValueError where `out` is taken."""
    require_free(Path(out))
    to_hf(load_model(Path(run)), out)
