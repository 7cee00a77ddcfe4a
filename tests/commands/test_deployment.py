"""`--kv-bits` and `--device`: the same as in Python, and what is not offered ends in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.commands.evaluate import evaluate_run
from dsv2.inference.deployed import with_cache_of
from dsv2.models.transformer import Transformer
from dsv2.training.saved import open_run
from tests.references.commands import refusal


def test_generate_continues_with_a_quantised_cache(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_run(trained)
    ids = opened.tokenizer.encode("Ban ben")
    expected = dsv2.generate(
        opened.model, torch.tensor([ids]), max_new_tokens=20, temperature=1, ids=opened.tokenizer.ids, kv_bits=2
    )[0]
    asked = ["generate", str(trained), "--prompt", "Ban ben", "--max-new-tokens", "20", "--temperature", "1"]
    assert main([*asked, "--kv-bits", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == opened.tokenizer.decode(expected.tolist()) + "\n"
    # 2 layers, a latent of 24 channels and a key of 8, each with a scale and an offset: 6 + 4 + 2 + 4 bytes
    assert printed.err.startswith("KV cache: 32 bytes per token, 4.00 bits per element on average")
    scored, values = [*asked, "--json", "--log-probabilities"], []
    for bits in ([], ["--kv-bits", "2"]):
        assert main([*scored, *bits]) == 0
        values.append(json.loads(capsys.readouterr().out)["log_probabilities"])
    assert values[0] != values[1]


def test_eval_measures_what_a_quantised_cache_costs(trained: Path, tmp_path: Path) -> None:
    """By the deployed model's scores; a cache in bfloat16 changes next to nothing."""
    out = tmp_path / "scores.json"
    values = {}
    for bits in ("16", "2"):
        assert main(["eval", str(trained), "--tasks", "copying", "--kv-bits", bits, "--out", str(out)]) == 0
        values[bits] = {row["metric"]: row["value"] for row in json.loads(out.read_text())["scores"]}
        scores, _ = evaluate_run(trained, ["copying"], deployment=with_cache_of(int(bits)))
        assert values[bits] == {score.metric: score.value for score in scores}
    plain = {score.metric: score.value for score in evaluate_run(trained, ["copying"])[0]}
    gain = "bench/copying_gain"
    assert abs(values["16"][gain] - plain[gain]) < 0.2 * abs(values["2"][gain] - plain[gain])


@pytest.mark.parametrize("command", [["generate", "--prompt", "Ban"], ["eval", "--tasks", "copying"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kv-bits", "7"], "kv_bits=7 is not valid: one of 16, 8, 6, 5, 4, 3, 2"),
        (["--kv-bits", "4", "--rope-bits", "12"], "rope_bits=12 is not valid: one of 16"),
        (["--rope-bits", "8"], "rope_bits=8 is not valid: given beside kv_bits"),
    ],
)
def test_bits_that_are_not_offered_end_in_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], command: list[str], options: list[str], message: str
) -> None:
    name, *rest = command
    assert refusal(capsys, name, trained, *rest, *options).startswith(message)


@pytest.mark.parametrize("command", [["generate", "--prompt", "Ban"], ["eval", "--tasks", "copying"], ["serve"]])
def test_a_device_that_is_not_there_ends_in_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    name, *rest = command
    for device in ("gpu", "cuda:-1", "meta", ""):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([name, str(trained), *rest, "--device", device])
        message = f"error: argument --device: {device!r} is not a device, as cpu, cuda or cuda:1; "
        assert capsys.readouterr().err.startswith(message)
    message = "device='cuda:99': must be one that is here, as cpu or cuda; "
    assert refusal(capsys, name, trained, *rest, "--device", "cuda:99").startswith(message)


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_a_device_is_where_the_model_answers(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    seen, hidden = set[str](), Transformer.hidden

    def noting(model: Transformer, *arguments: Any, **settings: Any) -> Any:
        seen.add(model.embedding.device.type)
        return hidden(model, *arguments, **settings)

    monkeypatch.setattr(Transformer, "hidden", noting)
    asked = ["generate", str(trained), "--prompt", "Ban ben", "--max-new-tokens", "9"]
    assert main([*asked, "--device", device]) == 0
    assert seen == {device}
    text = capsys.readouterr().out
    assert main(asked) == 0
    assert capsys.readouterr().out == text
