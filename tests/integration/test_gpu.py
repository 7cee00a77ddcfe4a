"""On a GPU: the model's values and gradients, generation in ragged batches, training, resume and stored runs."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import dsv2
from dsv2.models.moe.router import Routing
from dsv2.storage.rundir import ROUTING
from dsv2.training import fit
from dsv2.training.callbacks.recorder import Recorder
from dsv2.training.saved import open_run
from tests.references.runs import rows
from tests.references.tolerances import FLOAT32_MODULE, close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

GPU = torch.device("cuda")


def moved(routing: Routing) -> Routing:
    return Routing(*(None if part is None else part.detach().to(GPU) for part in routing))


@pytest.mark.parametrize("ffn", ["moe", "dense", "gshard", "switch", "hash"])
@pytest.mark.parametrize("attention", ["mla", "mha", "gqa", "mqa"])
def test_values_and_gradients_are_those_of_the_cpu(attention: str, ffn: str) -> None:
    """With the CPU's choice of experts: a tie that rounds the other way sends a token elsewhere."""
    overrides = ["model.vocab_size=2048", f"model/attention={attention}", f"model/ffn={ffn}"]
    here, there = (dsv2.load(overrides).model.build(seed=1).eval() for _ in range(2))
    there = there.to(GPU)
    tokens = torch.randint(2048, (4, 65), generator=torch.Generator().manual_seed(2))
    expected = here(tokens[:, :-1])
    output = there(tokens[:, :-1].to(GPU), routings=[moved(routing) for routing in expected.routings])
    close(output.logits.cpu(), expected.logits, FLOAT32_MODULE, "logits")
    for logits in (expected.logits, output.logits):
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten().to(logits.device)).backward()
    gradients = {name: weight.grad for name, weight in here.named_parameters()}
    for name, weight in there.named_parameters():
        close(weight.grad.cpu(), gradients[name], FLOAT32_MODULE, f"gradient of {name}")


@pytest.mark.parametrize("attention", ["mla", "mha", "gqa", "mqa"])
def test_a_ragged_batch_generates_what_each_prompt_does_alone(attention: str) -> None:
    model = dsv2.load(["model.vocab_size=2048", "model.init_std=0.3", f"model/attention={attention}"]).model.build()
    model = model.to(GPU).eval()
    prompts = [torch.arange(1, length + 1, device=GPU) for length in (5, 1, 17, 3)]
    together = dsv2.generate(model, prompts, max_new_tokens=12)
    for prompt, text in zip(prompts, together, strict=True):
        assert torch.equal(text, dsv2.generate(model, prompt[None], max_new_tokens=12)[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_crashed_ends_as_if_it_had_not(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    run = dsv2.load([*quick, "trainer.accelerator=gpu", f"trainer.precision={precision}"])
    whole = fit.fit(run, tmp_path / "whole")
    assert whole["provenance"]["device"] == torch.cuda.get_device_name()
    inner = Recorder.on_train_batch_end

    def crash(self: Recorder, trainer: object, *arguments: object) -> None:
        inner(self, trainer, *arguments)  # type: ignore[arg-type]
        if trainer.global_step == 7:  # type: ignore[attr-defined]
            raise OSError("the machine went away")

    with monkeypatch.context() as broken:
        broken.setattr(Recorder, "on_train_batch_end", crash)
        with pytest.raises(OSError, match="went away"):
            fit.fit(run, tmp_path / "stopped")
    fit.fit(run, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert pd.read_parquet(tmp_path / "stopped" / ROUTING).equals(pd.read_parquet(tmp_path / "whole" / ROUTING))


def test_a_run_trains_as_on_the_cpu_and_is_read_on_either(quick: list[str], tmp_path: Path) -> None:
    for where in ("cpu", "gpu"):
        fit.fit(dsv2.load([*quick, f"trainer.accelerator={where}"]), tmp_path / where)
    losses = [[row["train/loss"] for row in rows(tmp_path / where)] for where in ("cpu", "gpu")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    on_gpu, on_cpu = open_run(tmp_path / "gpu", device="cuda"), open_run(tmp_path / "gpu")
    assert on_gpu.model.embedding.is_cuda
    prompt = torch.tensor([on_cpu.reader.prompt("Ban gand")])
    texts = [dsv2.generate(run.model, prompt.to(run.device), max_new_tokens=8).cpu() for run in (on_gpu, on_cpu)]
    assert torch.equal(*texts)
