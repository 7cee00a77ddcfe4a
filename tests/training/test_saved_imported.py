"""An imported model answers as a run does, and is exported as it came."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import tokenizers.processors
import torch
import yaml

import dsv2
from dsv2.commands.huggingface import export_hf, import_hf
from dsv2.config import ConfigError
from dsv2.data.corpora import _survey
from dsv2.explore.subject import open_subject
from dsv2.training.saved import open_run
from tests.references.answers import TASKS, answers


@pytest.fixture(params=["post-processor", "add_bos_token"])
def imported(request: pytest.FixtureRequest, run: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer begins texts with a token of its own and whose context is 77 tokens long."""
    export_hf(run, tmp_path / "hf")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    backend.add_special_tokens(["<begin>"])
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text()) | {"bos_token": "<begin>"}
    if request.param == "post-processor":
        special = [("<begin>", backend.token_to_id("<begin>"))]
        backend.post_processor = tokenizers.processors.TemplateProcessing("<begin> $A", special_tokens=special)
        del settings["add_bos_token"]
    else:
        settings["add_bos_token"] = True
    backend.save(str(tmp_path / "hf" / "tokenizer.json"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["eos_token_id"]) == (32, 0)
    config |= {"max_position_embeddings": 77, "bos_token_id": backend.token_to_id("<begin>")}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    import_hf(tmp_path / "hf", tmp_path / "imported")
    return tmp_path / "imported"


@pytest.fixture
def english(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default text of imported models, made small."""
    for path in texts.glob("*.txt"):
        path.write_text(path.read_text().replace(".", ". "))
    monkeypatch.setattr("dsv2.data.corpora._speeches", lambda: sorted(texts.glob("*.txt")))
    _survey.cache_clear()  # of the speeches that these stand for
    yield
    _survey.cache_clear()


def test_an_imported_model_does_all_that_a_run_does(imported, english, run, tmp_path, capsys):
    opened = open_run(imported)
    assert opened.imported
    assert opened.longest == 77
    assert opened.tokenizer.prefix == (opened.tokenizer.start_id,)
    assert opened.reader.prompt("Ban")[0] == opened.tokenizer.start_id
    assert opened.reader.prompt("Ban")[1:] == open_run(run).tokenizer.encode("Ban")
    said = answers(imported, tmp_path / "analysis")
    assert said["text"].startswith("Ban")
    assert {score.task for score in said["scores"]} == set(TASKS)
    assert said["explored"].split()
    subject = open_subject(opened)
    assert subject.steps == (None,)
    assert torch.equal(opened.model.embedding, open_run(run).model.embedding)
    with pytest.raises(ValueError, match=r"an imported model; its config\.yaml names no training"):
        opened.config  # noqa: B018


def test_what_was_imported_is_exported_unchanged(imported, tmp_path):
    export_hf(imported, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        there, back = (json.loads((tmp_path / folder / name).read_text()) for folder in ("hf", "again"))
        assert there == back, name
    shutil.rmtree(tmp_path / "hf")
    import_hf(tmp_path / "again", tmp_path / "third")
    assert open_run(tmp_path / "third").longest == 77


def test_an_imported_model_without_a_tokenizer_says_so(imported):
    (imported / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"an imported model without tokenizer\.json"):
        open_run(imported).reader  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["post-processor"], indirect=True)  # transformers 5 reads no add_bos_token
def test_transformers_reads_what_is_exported(run, imported, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    for folder, name in ((run, "own"), (imported, "other")):
        export_hf(folder, tmp_path / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        reader = open_run(folder).reader
        assert tokenizer("Ban gand.")["input_ids"] == reader.prompt("Ban gand.")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        ids = torch.tensor([reader.prompt("Ban")])
        theirs = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(theirs, dsv2.generate(reader.model, ids, max_new_tokens=6))


def test_keys_beside_the_model_are_a_mapping(imported, tmp_path):
    """The context length may be missing; what is not one is named, with the file."""
    path = imported / "config.yaml"
    config = yaml.safe_load(path.read_text())

    def opened(checkpoint):
        path.write_text(yaml.safe_dump(config | {"checkpoint": checkpoint}))
        return open_run(imported)

    for checkpoint in ([1], 3, "text"):
        with pytest.raises(ConfigError, match=r"^checkpoint=.* is not valid: a mapping, or null, in .*config\.yaml"):
            opened(checkpoint).longest  # noqa: B018
        with pytest.raises(ConfigError, match=r"^checkpoint="):
            export_hf(imported, tmp_path / "out")
    for length in ("abc", -1, 0, [3], 2.5, True):
        run, message = opened({"max_position_embeddings": length}), r"max_position_embeddings=.* is not valid: a? ?\w+"
        with pytest.raises(ConfigError, match=r"^checkpoint\." + message):
            run.longest  # noqa: B018
        with pytest.raises(ConfigError, match="^" + message):
            export_hf(imported, tmp_path / "out")
    for checkpoint, longest in ((None, 4096), ({}, 4096), ({"max_position_embeddings": 9}, 9)):
        assert opened(checkpoint).longest == longest
        export_hf(imported, tmp_path / f"out-{checkpoint}")
