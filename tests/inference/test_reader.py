"""A saved model with its tokenizer: of a trained run, and of an imported model with its files beside it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import yaml
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

import dsv2
from dsv2.__main__ import main
from dsv2.config import plain
from dsv2.data.tokenizer import END_ID, Tokenizer
from dsv2.evaluation.harness import Harness
from dsv2.inference.reader import Reader, open_reader
from dsv2.training import fit


@pytest.fixture
def run_dir(quick: list[str], tmp_path: Path) -> Path:
    fit.fit(dsv2.load(quick), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def tokenizer(quick: list[str]) -> Tokenizer:
    """The tokenizer that the runs of `quick` have."""
    opened = dsv2.load(quick).data.open(sequence_length=32, seed=0, validation_tokens=512)
    assert opened.tokenizer is not None
    return opened.tokenizer


@pytest.fixture
def imported(quick: list[str], tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """An imported model and its `tokenizer.json`, without the settings that name the beginning of a text."""
    folder = tmp_path / "imported"
    folder.mkdir()
    model = dsv2.load(quick).model
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": plain(model)}))
    save_file(model.build().state_dict(), folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer.json")
    return folder


def test_a_trained_run_is_read_with_its_own_tokenizer_and_length(run_dir: Path, tokenizer: Tokenizer) -> None:
    reader = open_reader(run_dir)
    assert reader.tokenizer.encode("Ban ben") == tokenizer.encode("Ban ben")
    assert (reader.start, reader.longest) == (END_ID, 32)
    assert not reader.model.training


def test_data_without_text_have_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(dsv2.load(["data=synthetic"]))))
    with pytest.raises(ValueError, match="its data are no text, so there is no tokenizer"):
        open_reader(tmp_path)


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a run directory, it has no config\.yaml"):
        open_reader(tmp_path)


# ---- imported models -------------------------------------------------------------------------------------------------


def test_an_imported_model_reads_as_the_run_it_came_from(run_dir: Path, imported: Path) -> None:
    """The same text to the same tokens and back, and the same log-likelihoods."""
    own = open_reader(run_dir)
    save_file(own.model.state_dict(), imported / "model.safetensors")
    (imported / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    reader = open_reader(imported)
    assert reader.start == own.start == END_ID
    assert reader.tokenizer.encode("Ban ben") == own.tokenizer.encode("Ban ben")
    assert reader.tokenizer.decode(reader.tokenizer.encode("Ban ben")) == "Ban ben"

    def likelihood(reader: Reader) -> list[tuple[float, bool]]:
        request = SimpleNamespace(args=("Ban", " ben"))
        return Harness(reader, batch_size=1).loglikelihood([request], disable_tqdm=True)

    assert likelihood(reader) == likelihood(own)
    assert main(["eval", str(imported), "--tasks", "cloze"]) == 2


def test_an_imported_model_needs_its_tokenizer(imported: Path) -> None:
    (imported / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"an imported model without tokenizer\.json"):
        open_reader(imported)


@pytest.mark.parametrize("settings", [None, "{}", '{"bos_token": null}', '{"bos_token": "<s>"}'])
def test_what_begins_a_text_has_to_be_named_and_known(imported: Path, settings: str | None) -> None:
    if settings is not None:
        (imported / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ValueError, match="names neither a bos_token nor an eos_token"):
        open_reader(imported)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ('{"bos_token": "b", "eos_token": "e"}', "b"),
        ('{"eos_token": "e"}', "e"),
        ('{"bos_token": "<s>", "eos_token": {"content": "e"}}', "e"),  # the tokenizer has no <s>
        ('{"bos_token": {"content": "b"}}', "b"),
    ],
)
def test_a_text_begins_with_bos_or_else_with_eos(
    imported: Path, tokenizer: Tokenizer, settings: str, start: str
) -> None:
    (imported / "tokenizer_config.json").write_text(settings)
    assert [open_reader(imported).start] == tokenizer.encode(start)


def test_special_tokens_are_neither_added_nor_hidden(imported: Path) -> None:
    """What an imported tokenizer would put before a text is left to the caller, who knows where a text begins."""
    backend = tokenizers.Tokenizer.from_file(str(imported / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_ID)])
    assert backend.encode("Ban ben").ids[0] == END_ID
    backend.save(str(imported / "tokenizer.json"))
    (imported / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    reader = open_reader(imported)
    assert END_ID not in reader.tokenizer.encode("Ban ben")
    assert reader.tokenizer.decode([END_ID]) == "<|endoftext|>"
