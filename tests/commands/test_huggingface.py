"""`import-hf` and `export-hf`: models go in and out with their tokenizer, whole or not at all."""

import glob
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

import dsv2
from dsv2.__main__ import main
from dsv2.commands.huggingface import export_hf, import_hf
from dsv2.explore.page import build
from dsv2.explore.subject import open_subject
from dsv2.inference.engine.request import Request
from dsv2.interop.huggingface import from_hf
from dsv2.storage.space import DiskFull
from dsv2.training import fit
from dsv2.training.saved import open_run
from tests.references.commands import refusal
from tests.references.twins import save_with_tokenizer, tokens, twin


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that transformers saved; without a tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "saved"
    twin().save_pretrained(folder)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# ---- in and out ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_run_and_comes_out_again(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import-hf", str(saved), str(run)]) == 0
    assert capsys.readouterr().out == f"{run}\n"
    assert tree(run).keys() - {"generation_config.json"} == {"config.yaml", "model.safetensors"}
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["checkpoint"]["max_position_embeddings"] == 4096
    assert open_run(run).imported
    assert open_run(run).longest == 4096

    assert main(["export-hf", str(run), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    theirs, ours = load_file(saved / "model.safetensors"), load_file(out / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert torch.equal(from_hf(out)(tokens()).logits, from_hf(saved)(tokens()).logits)


def test_what_was_imported_is_exported_unchanged(imported: Path, tmp_path: Path) -> None:
    """Tokenizer, settings and what config.json says beside the shape of the model."""
    (imported / "generation_config.json").write_text('{"temperature": 0.3}')
    config = yaml.safe_load((imported / "config.yaml").read_text())
    config["checkpoint"] |= {"max_position_embeddings": 77, "bos_token_id": 300}
    (imported / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    export_hf(imported, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert values(tmp_path / "again" / name) == values(tmp_path / "hf" / name), name
    assert values(tmp_path / "again" / "generation_config.json") == {"temperature": 0.3}
    own = {"max_position_embeddings": 77, "bos_token_id": 300}
    assert values(tmp_path / "again" / "config.json") == values(tmp_path / "hf" / "config.json") | own
    import_hf(tmp_path / "again", tmp_path / "third")
    third, first = tree(tmp_path / "third"), tree(imported)
    assert yaml.safe_load(third.pop("config.yaml")) == yaml.safe_load(first.pop("config.yaml"))
    assert third == first


def test_a_trained_run_goes_out_with_its_tokenizer(trained: Path, tmp_path: Path) -> None:
    export_hf(trained, tmp_path / "out")
    assert tree(tmp_path / "out").keys() == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (trained / "tokenizer.json").read_text()
    settings, config = values(tmp_path / "out" / "tokenizer_config.json"), values(tmp_path / "out" / "config.json")
    assert (settings["eos_token"], settings["add_bos_token"]) == ("<|endoftext|>", False)
    assert settings["model_max_length"] == config["max_position_embeddings"] == 32  # tokens, as it was trained
    assert config["eos_token_id"] == 0
    assert config["vocab_size"] == 320
    assert values(tmp_path / "out" / "generation_config.json") == {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "do_sample": False,
        "suppress_tokens": list(range(300, 320)),
    }
    weights = from_hf(tmp_path / "out").state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in open_run(trained).model.state_dict().items())


def test_a_trained_run_comes_back_as_it_was(trained: Path, tmp_path: Path) -> None:
    export_hf(trained, tmp_path / "out")
    import_hf(tmp_path / "out", tmp_path / "back")
    before, back = open_run(trained), open_run(tmp_path / "back")
    assert back.model_config == before.model_config
    assert back.longest == before.longest
    assert back.tokenizer.encode("Ban naïve 学习") == before.tokenizer.encode("Ban naïve 学习")
    assert back.reader.prompt("Ban") == before.reader.prompt("Ban")


def test_a_run_without_text_goes_out_without_a_tokenizer_and_says_so(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for word in quick if not word.startswith("data")]
    fit.fit(dsv2.load([*settings, "data=synthetic", "trainer.tokens=128"]), tmp_path / "numbers")
    capsys.readouterr()
    assert main(["export-hf", str(tmp_path / "numbers"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/out\n"
    assert said.err == (
        f"warning: exported without a tokenizer. {tmp_path}/numbers: its data are not text, so it has no tokenizer\n"
    )
    assert tree(tmp_path / "out").keys() == {"config.json", "model.safetensors"}


@pytest.mark.slow
def test_transformers_reads_what_is_exported(trained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    export_hf(trained, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reader = open_run(trained).reader
    assert tokenizer("Ban gand.")["input_ids"] == reader.prompt("Ban gand.")
    ids = torch.tensor([reader.prompt("Ban")])
    theirs = model.generate(ids, max_new_tokens=20)
    assert torch.equal(theirs, dsv2.generate(reader.model, ids, max_new_tokens=20, ids=reader.tokenizer.ids))


@pytest.mark.slow
def test_transformers_chats_with_what_is_exported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that transformers pads on the left, by the template and the generation config that were written."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    export_hf(trained, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer.pad_token = tokenizer.eos_token
    chats = [[{"role": "user", "content": text}] for text in ("Ban", "Gand ben dist.")]
    asked = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt")
    made = model.generate(**asked, max_new_tokens=9)[:, asked["input_ids"].shape[1] :]
    run = open_run(trained)
    engine = run.reader.engine(num_rows=2, max_length=99)
    stop = frozenset([run.tokenizer.end_id])
    ours = [engine.submit(Request(prompt=run.chat.prompt(chat), max_new_tokens=9, stop_ids=stop)) for chat in chats]
    list(engine.run())
    assert [row[: len(each.tokens)].tolist() for row, each in zip(made, ours, strict=True)] == [
        each.tokens for each in ours
    ]


def test_a_flag_that_is_text_is_read(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, content in tree(saved).items():
        (folder / name).write_bytes(content)
    with_config(tie_word_embeddings="false", norm_topk_prob="false")(folder)
    import_hf(folder, tmp_path / "run")
    assert not open_run(tmp_path / "run").model_config.tie_embeddings


@pytest.mark.parametrize("command", ["import-hf", "export-hf"])
def test_an_optional_file_that_cannot_be_read_is_left_out(
    command: str, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "hf" if command == "import-hf" else imported
    (source / "generation_config.json").write_text("{}")
    plain_open = Path.open

    def open_file(path: Path, *arguments: Any, **more: Any) -> Any:
        if path == source / "generation_config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return plain_open(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", open_file)
    capsys.readouterr()
    assert main([command, str(source), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == f"warning: {source}/generation_config.json is left out. Permission denied\n"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "generation_config.json").exists()


# ---- what an imported model does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_every_command_takes_a_model_of_transformers_with_its_own_tokenizer(
    kind: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [Path(path).read_text() for path in sorted(glob.glob(corpus))]  # noqa: PTH207
    limited = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    save_with_tokenizer(tmp_path / "hf", kind, texts, max_position_embeddings=64, num_hidden_layers=3, **limited)
    run, text = str(tmp_path / "run"), ["--text", "data=files", f"data.path={corpus}"]
    assert main(["import-hf", str(tmp_path / "hf"), run]) == 0
    assert main(["analyse", run, "--only", "tokens,router", *text]) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1])
    by_expert = pd.read_csv(page.with_name("expert_tokens.csv"))
    assert by_expert["layer"].unique().tolist() == [1, 2]
    shown = set(" ".join(by_expert["tokens_in_text"]).split("' '"))
    assert {token for token in shown if token.startswith(" ")}  # words keep the space before them

    accounts = []
    for words in (["--run", run], ["--hf", str(tmp_path / "hf")]):
        assert main(["account", *words, "--context", "64", "--json"]) == 0
        accounts.append(json.loads(capsys.readouterr().out))
    assert accounts[0] == accounts[1]
    weights = load_file(Path(run) / "model.safetensors")
    assert accounts[0]["total_params"] == sum(weight.numel() for weight in weights.values())

    explored = build([open_subject(open_run(run, text=text[1:]))])
    (painted,) = (pane.object for pane in explored.select() if 'class="text"' in str(getattr(pane, "object", "")))
    assert painted.count('class="token"') > 5

    assert main(["export-traces", run, str(tmp_path / "traces"), *text]) == 0
    options = ["--devices", "4", "--max-devices", "2", "--dim", "32"]
    assert main(["analyse", "--traces", str(tmp_path / "traces"), *options]) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1])
    assert (pd.read_csv(page.with_name("devices.csv"))["displaced"] == 0).all()  # the model has this limit


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["import-hf", "export-hf"])
@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_what_is_there_is_not_overwritten(
    command: str, what: str, saved: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, taken = (saved if command == "import-hf" else trained), tmp_path / "taken"
    if what == "folder":
        taken.mkdir()
        (taken / "notes.txt").write_text("mine")
    elif what == "file":
        taken.write_text("mine")
    else:
        taken.symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    assert refusal(capsys, command, source, taken) == (
        f"{taken}: already exists and is not an empty directory; nothing was written"
    )
    assert tree(tmp_path) == before


def test_an_empty_folder_is_free(saved: Path, trained: Path, tmp_path: Path) -> None:
    for name, command, source in (("in", import_hf, saved), ("out", export_hf, trained)):
        (tmp_path / name).mkdir()
        command(source, tmp_path / name)
        assert (tmp_path / name / "model.safetensors").is_file()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_config(**changed: Any) -> Callable[[Path], None]:
    path = "config.json"
    return lambda folder: (folder / path).write_text(json.dumps(values(folder / path) | changed)) and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("config.json"), "{0}/config.json: No such file"),
        (without("model.safetensors"), "{0}: neither model.safetensors nor model.safetensors.index.json"),
        (with_config(model_type="llama"), "model_type='llama' is not valid: 'deepseek_v2' for weights"),
        (with_config(num_hidden_layers=3), "{0}: model.layers.2."),
        (with_config(max_position_embeddings="abc"), "max_position_embeddings='abc' is not valid: an integer"),
        (with_config(max_position_embeddings=-1), "max_position_embeddings=-1 is not valid: positive"),
        (with_config(max_position_embeddings=[3]), "max_position_embeddings=[3] is not valid: an integer"),
        (with_config(eos_token_id="x"), "eos_token_id='x' is not valid: the id of a token"),
        (with_config(norm_topk_prob=True), "norm_topk_prob=True is not valid: false"),
        (with_config(routed_scaling_factor=float("nan")), "routed_scaling_factor=nan is not valid: a number"),
        (with_config(tie_word_embeddings="true"), "{0}: lm_head.weight: extra, since tie_word_embeddings is true"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_one_line(
    change: Callable[[Path], None], message: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, content in tree(saved).items():
        (folder / name).write_bytes(content)
    change(folder)
    assert refusal(capsys, "import-hf", folder, tmp_path / "out").startswith(message.format(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "RUN='{0}': a run directory, sweep/scale/arm/seed, or the first digits of a fingerprint"),
        (".", "{0}: not a run directory, it has no config.yaml"),
    ],
)
def test_what_is_no_run_is_not_exported(
    source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, "export-hf", tmp_path / source, tmp_path / "out").startswith(
        message.format(tmp_path / source)
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["save_file", "shutil.copyfile"])
def test_a_full_disk_leaves_nothing_half_written(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = tree(tmp_path).keys()
    monkeypatch.setattr(f"dsv2.commands.huggingface.{failing}", full)
    with pytest.raises(DiskFull, match=f"{tmp_path}/full: no space left on the disk"):
        import_hf(tmp_path / "hf", tmp_path / "full")
    assert tree(tmp_path).keys() == before
    assert not list(tmp_path.glob(".full*"))
