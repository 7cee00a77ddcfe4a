"""`python -m dsv2 analyse` on a run that trained for a second: what it writes, says and refuses."""

import shutil
from pathlib import Path

import matplotlib
import matplotlib.figure
import pandas as pd
import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.commands.analyse import analyse
from dsv2.report.experts import ANALYSES
from dsv2.training import fit
from dsv2.training import machine as process

matplotlib.use("Agg")


@pytest.fixture
def trained(quick: list[str], tmp_path: Path) -> Path:
    process.prepare()
    torch.set_num_threads(1)
    fit.fit(dsv2.load(quick), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_analysed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {path: path.read_bytes() for path in trained.rglob("*.ckpt")}
    assert main(["analyse", str(trained)]) == 0
    said = capsys.readouterr()
    folder = trained / "analysis"
    assert said.out.splitlines()[-1] == str(folder / "report.html")
    assert "routing: " in said.err  # a progress bar
    assert "domains does not apply: the validation text has fewer than two domains" in said.out
    loss = fit.read_result(trained)["metrics"]["val/loss"]
    for name in ("shared", "redundancy", "fewer"):
        table = pd.read_csv(folder / f"{name}.csv")
        assert table["loss"][0] == pytest.approx(loss, rel=1e-6)
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    assert pd.read_csv(folder / "fewer.csv")["experts"].tolist() == [2, 1]
    assert pd.read_csv(folder / "redundancy.csv")["masked"].tolist() == [0, 1, 2]
    settled = pd.read_csv(folder / "saturation.csv")
    assert settled["step"].tolist() == [0, 4, 8, 12]
    assert settled["overlap"].iloc[-1] == 1
    assert len(pd.read_csv(folder / "expert_tokens.csv")) == 8
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert page.count("<figure") == text.count("](figures/") == 8
    assert 'src="http' not in page
    assert "<td>as trained</td>" in page
    assert {path: path.read_bytes() for path in trained.rglob("*.ckpt")} == weights

    other, _ = analyse(trained, out=tmp_path / "elsewhere", only=["shared", "fewer"])
    assert other == tmp_path / "elsewhere" / "report.html"
    assert sorted(path.name for path in other.parent.glob("*.csv")) == ["fewer.csv", "shared.csv"]


def test_another_run_is_compared_with(trained: Path, quick: list[str], tmp_path: Path) -> None:
    coarse = ["model.shape.num_experts=4", "model.shape.top_k=1", "model.shape.expert_dim=16", "arm=coarse"]
    second = fit.fit(dsv2.load([*quick, *coarse]), tmp_path / "coarse")
    page, _ = analyse(trained, only=["redundancy", "fewer"], against=tmp_path / "coarse")
    assert page is not None
    assert page.parent == trained / "analysis-redundancy-fewer-against=coarse"
    table = pd.read_csv(page.parent / "redundancy.csv")
    assert table[table["run"] == "coarse-s0"]["masked"].tolist() == [0, 1]
    text = page.with_suffix(".md").read_text()
    assert f"coarse-s0 has {second['metrics']['val/loss']:.3f} at an active width of 32" in text
    fit.fit(dsv2.load([*quick, "trainer.validation_tokens=256"]), tmp_path / "short")
    with pytest.raises(ValueError, match="against"):
        analyse(trained, only=["fewer"], against=tmp_path / "short")


def test_domains_are_told_apart(quick: list[str], tmp_path: Path) -> None:
    process.prepare()
    rows = [{"text": f"{word} {n} " * 200, "domain": word} for word in ("alpha", "beta") for n in range(12)]
    pd.DataFrame(rows).to_json(tmp_path / "two.jsonl", orient="records", lines=True)
    fit.fit(dsv2.load([*quick, f"data.path={tmp_path}/two.jsonl"]), tmp_path / "run")
    path = f"data.path={tmp_path}/two.jsonl"
    page, _ = analyse(tmp_path / "run", only=["domains"], text=["data=files", path])
    assert page is not None
    assert page.parent.parent == tmp_path / "run"
    assert page.parent.name.startswith("analysis-domains-data=files-data.path=_")
    shares = pd.read_csv(page.parent / "domain_shares.csv")
    assert shares.groupby("domain")["share"].sum().to_dict() == pytest.approx({"alpha": 1, "beta": 1})


def test_a_dense_run_is_told_what_does_not_apply(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process.prepare()
    fit.fit(dsv2.load([*quick, "model/ffn=dense"]), tmp_path)
    assert main(["analyse", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name} does not apply: a dense model has no routing." for name in ANALYSES
    ]
    assert not (tmp_path / "analysis").exists()


def test_runs_without_snapshots_say_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "routing_snapshots.parquet").unlink()
    reason = "saturation does not apply: the run recorded no routing snapshots.\n"
    assert main(["analyse", str(trained), "--only", "saturation"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"warning: {reason}")
    assert not list(trained.glob("analysis*"))
    assert main(["analyse", str(trained), "--only", "saturation,tokens"]) == 1
    said = capsys.readouterr()
    assert f"warning: {reason}" in said.err
    page = Path(said.out.splitlines()[-1])
    assert reason.strip() in page.with_suffix(".md").read_text()
    assert main(["analyse", str(trained)]) == 0  # what was not asked for by name may not apply
    assert reason in capsys.readouterr().out


def test_mistakes_are_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(trained / "checkpoints")
    for arguments, message in (
        ([str(trained)], "neither model.safetensors nor a valid checkpoint"),
        ([str(tmp_path / "none")], "none': a run directory, sweep/scale/arm/seed, or the first digits"),
        ([str(trained), "--only", "shared,sharde"], "only='sharde' is not valid: one or more of shared, redundancy"),
    ):
        assert main(["analyse", *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert message in said
        assert len(said.splitlines()) == 1


def test_a_model_with_one_expert_is_analysed(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process.prepare()
    one = ["model.shape.num_experts=1", "model.shape.top_k=1", "model.shape.num_devices=1"]
    fit.fit(dsv2.load([*quick, *one]), tmp_path)
    assert main(["analyse", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "tokens does not apply: a single routed expert leaves no choice." in said.out
    assert "warning" not in said.err
    assert [path.stem for path in (tmp_path / "analysis").glob("*.csv")] == ["shared"]


def test_one_failing_analysis_does_not_take_the_rest_along(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One raises, one's figure cannot be drawn, one's cannot be rendered, and a file is damaged: each is reported."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no experts")

    def unreadable(*_: object, **__: object) -> matplotlib.figure.Figure:
        figure = matplotlib.figure.Figure()
        figure.suptitle("$a^{$")
        return figure

    monkeypatch.setitem(ANALYSES, "router", broken)
    monkeypatch.setattr("dsv2.plots.experts.loss_changes", broken)
    monkeypatch.setattr("dsv2.plots.experts.loss_over_masked", unreadable)
    (trained / "routing_snapshots.parquet").write_bytes(b"PAR1")
    assert main(["analyse", str(trained)]) == 0
    said, folder = capsys.readouterr(), trained / "analysis"
    warnings = [line for line in said.err.splitlines() if line.lstrip("\r ").startswith("warning")]
    text = (folder / "report.md").read_text()
    for start in (
        "router failed: ZeroDivisionError: no experts.",
        "saturation failed: ArrowInvalid: ",
        "The figure shared could not be drawn: ZeroDivisionError: no experts.",
        "The figure redundancy could not be drawn: ",
    ):
        assert sum(start in line for line in warnings) == 1, start
        assert start in text
    assert len(warnings) == 4
    written = {path.stem for path in folder.glob("*.csv")}
    assert {"shared", "redundancy", "fewer", "tokens", "coactivation"} <= written
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn == {"fewer", "tokens", "expert_tokens", "coactivation"}

    assert main(["analyse", str(trained), "--only", "router"]) == 2
    assert capsys.readouterr().err.strip() == "error: router failed: ZeroDivisionError: no experts."
