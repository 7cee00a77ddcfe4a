"""`analyse --traces` and `export-traces`: the same numbers as of the run itself; what is not whole is one line."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import dsv2
from dsv2.__main__ import main
from dsv2.commands import traces
from dsv2.routing import coactivation
from dsv2.routing.observed import observe
from dsv2.routing.traces import open_traces
from dsv2.storage.rundir import read_result
from dsv2.training import fit
from dsv2.training.saved import open_run
from tests.references.commands import refusal
from tests.references.routing_traces import LAYERS, STEPS, E, Made, make

matplotlib.use("Agg")
DEVICES = ["--devices", "4", "--max-devices", "2", "--capacity", "1.25", "--batch-tokens", "50", "--dim", "64"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("traces") / "random")


@pytest.fixture
def folder(shared: Made, tmp_path: Path) -> Path:
    """Traces that a test may spoil."""
    shutil.copytree(shared.folder, tmp_path / "random")
    return tmp_path / "random"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


# ---- a run and its traces --------------------------------------------------------------------------------------------


def test_traces_of_a_run_have_its_figures(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that both commands show, and the run's own measures of its last validation."""
    out = tmp_path / "traces"
    assert main(["export-traces", str(trained), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    run = open_run(trained)
    assert open_traces(out).steps == tuple(run.steps) == (8, 12)
    assert open_traces(out).num_tokens == run.validation.inputs.numel()
    size = run.batch_size * run.longest
    options = ["--devices", "4", "--batch-tokens", str(size), "--dim", "16"]
    assert main(["analyse", "--traces", str(out), *options]) == 0
    said = capsys.readouterr()
    page = Path(said.out.splitlines()[-1])
    assert page == out / f"analysis-devices=4-batch-tokens={size}-dim=16" / "report.html"
    assert "does not apply" not in said.out
    assert said.err == ""  # no bar outside of a terminal

    assert main(["analyse", str(trained), "--only", "tokens,coactivation,router", "--out", str(tmp_path / "run")]) == 0
    theirs, ours = page.parent, tmp_path / "run"
    for name in ("tokens", "expert_tokens", "coactivation", "pairs"):
        expected = read(ours, name).drop(columns="tokens_in_text", errors="ignore")
        pd.testing.assert_frame_equal(read(theirs, name)[list(expected)], expected, rtol=1e-9)
    router = read(theirs, "router").query("step == 12").reset_index(drop=True)
    expected = read(ours, "router")[["layer", "chosen_mass", "top_gate"]]
    pd.testing.assert_frame_equal(router[list(expected)], expected, rtol=1e-9)

    result = read_result(trained)["metrics"]
    load, devices = (read(theirs, name).query("step == 12").mean() for name in ("load", "devices"))
    for name in ("max_violation", "entropy", "dead_experts"):
        assert load[name] == pytest.approx(result[f"routing/{name}"], rel=1e-9)
    for name in ("device_max_violation", "received_max_violation", "devices_per_token"):
        assert devices[name] == pytest.approx(result[f"routing/{name}"], rel=1e-9)
    assert devices["drop_rate"] == pytest.approx(result["routing/overflow"], rel=1e-9)


def test_saturation_of_traces_is_that_of_the_checkpoints(trained: Path, tmp_path: Path) -> None:
    traces.export_traces(trained, tmp_path / "out")
    page, _ = traces.analyse_traces(tmp_path / "out", only=["saturation"])
    assert page is not None
    run, rows = open_run(trained), []
    for step in run.steps:
        observed = observe(run.model_at(step), run.validation, batch_size=run.batch_size)
        for layer, experts in zip(observed.layers, observed.experts, strict=True):
            chosen = experts.reshape(-1, experts.shape[-1])
            token, slot = np.indices(chosen.shape).reshape(2, -1)
            columns = {"step": step, "layer": layer, "token": token, "slot": slot, "expert": chosen.ravel()}
            rows.append(pd.DataFrame(columns))
    expected = coactivation.saturation(pd.concat(rows), observed.num_experts)
    pd.testing.assert_frame_equal(read(page.parent, "saturation"), expected, check_dtype=False, rtol=1e-9)
    assert expected["overlap"].min() < 1
    assert "After step 8 " in page.with_suffix(".md").read_text()


def test_an_imported_model_is_step_0_and_other_text_can_be_chosen(
    imported: Path, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--text", "data=files", f"data.path={corpus}"]
    assert main(["export-traces", str(imported), str(tmp_path / "out"), *text]) == 0
    found = open_traces(tmp_path / "out")
    assert found.steps == (0,)
    run = open_run(imported, text=text[1:])
    np.testing.assert_array_equal(np.concatenate(list(found.tokens())), run.validation.inputs.flatten())
    assert main(["analyse", "--traces", str(tmp_path / "out"), "--only", "load,saturation"]) == 1
    assert "saturation does not apply: the traces are of one step." in capsys.readouterr().err


def test_what_cannot_be_exported_is_one_line(
    trained: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    refused = refusal(capsys, "export-traces", trained, tmp_path / "taken")
    assert refused == f"{tmp_path / 'taken'}: already exists and is not an empty directory; nothing was written"
    fit.fit(dsv2.load([*quick, "model/ffn=dense", "trainer.tokens=128"]), tmp_path / "dense")
    refused = refusal(capsys, "export-traces", tmp_path / "dense", tmp_path / "out")
    assert refused == f"{tmp_path / 'dense'}: a dense model has no routing; traces need a run with model/ffn=moe"
    shutil.rmtree(trained / "checkpoints")
    refused = refusal(capsys, "export-traces", trained, tmp_path / "out")
    assert refused.startswith(f"{trained}: no valid checkpoint in {trained / 'checkpoints'}; to train it again, delete")
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_stopped_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second checkpoint is read."""
    plain = dsv2.training.saved.SavedRun.model_at

    def model_at(run: object, step: int) -> object:
        if step == 12:
            raise KeyboardInterrupt
        return plain(run, step)  # type: ignore[arg-type]

    monkeypatch.setattr("dsv2.training.saved.SavedRun.model_at", model_at)
    before = files(tmp_path)
    assert main(["export-traces", str(trained), str(tmp_path / "out")]) == 130
    assert files(tmp_path) == before


# ---- traces from elsewhere -------------------------------------------------------------------------------------------


def test_traces_are_analysed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert main(["analyse", "--traces", str(folder), "--out", str(tmp_path / "out"), *DEVICES]) == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.html")
    assert files(folder) == before
    names = {"load", "expert_load", "devices", "device_load", "traffic", "tokens", "expert_tokens", "coactivation"}
    assert {path.stem for path in out.glob("*.csv")} == names | {"pairs", "router", "saturation"}
    drawn = {"load", "device_load", "tokens", "expert_tokens", "coactivation", "router", "saturation"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == drawn
    text = (out / "report.md").read_text()
    headline = "150 tokens, after 3 steps from 4 to 100, 2 MoE layers, 3 of 12 experts per token."
    assert f"**Traces random: {headline}**" in text
    assert "seed" not in text
    loads = read(out, "expert_load")
    assert len(loads) == len(STEPS) * len(LAYERS) * E
    assert loads.groupby(["layer", "step"])["load"].sum().eq(150 * 3).all()


def test_more_experts_than_were_chosen(folder: Path) -> None:
    page, _ = traces.analyse_traces(folder, only=["load", "devices"], experts=16, devices=8)
    assert page is not None
    assert page.parent.name == "analysis-load-devices-experts=16-devices=8"
    assert read(page.parent, "load")["dead_experts"].eq(0.25).all()
    assert len(read(page.parent, "device_load")) == len(STEPS) * len(LAYERS) * 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "5"], "devices=5 is not valid: a divisor of experts=12"),
        (["--devices", "0"], "devices=0 is not valid: a divisor of experts=12"),
        (["--devices", "4", "--max-devices", "5"], "max-devices=5 is not valid: between 1 and devices=4, or null"),
        (["--devices", "12", "--max-devices", "2"], "top_k=3 is not valid: between 1 and 2, the experts on 2 devices"),
        (["--experts", "0"], "experts=0 is not valid: 1 to 4,096"),
        (["--experts", "2"], "top_k=3 is not valid: between 1 and 2, the experts on 1 devices"),
        (["--experts", "11"], r"row \d+: indices=\[.*11.*\]: must be 0 to 10"),
        (["--batch-tokens", "0"], "batch-tokens=0 is not valid: 1 or more"),
        (["--dim", "-1"], "dim=-1 is not valid: 1 or more"),
        (["--capacity", "0"], "capacity=0.0 is not valid: positive and finite"),
        (["--capacity", "nan"], "capacity=nan is not valid: positive and finite"),
        (["--only", "load,domains"], "only='domains' is not valid: one or more of load, devices, traffic, tokens, "),
        (["--against", "RUN"], "against='RUN' is not valid: only together with RUN; traces have a text of their own"),
        (["--text", "data=english"], r"text=\['data=english'\] is not valid: only together with RUN"),
        (["--out", "file"], "--out file: must be a folder, but file is a file"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("file").write_text("mine")
    before = files(folder.parent)
    said = refusal(capsys, "analyse", "--traces", folder, *words)
    assert pd.Series([said]).str.contains(message).all(), said
    assert files(folder.parent) == before


@pytest.mark.parametrize("words", [["--devices", "4"], ["--batch-tokens", "9"], ["--experts", "8"], ["--dim", "0"]])
def test_options_of_traces_do_not_go_with_a_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, value = words
    assert refusal(capsys, "analyse", "RUN", *words) == f"{name[2:]}={value} is not valid: only together with --traces"


def test_a_run_and_traces_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["analyse", "RUN", "--traces", str(folder)])
    assert "argument --traces: not allowed with argument RUN" in capsys.readouterr().err


def truncated(folder: Path) -> None:
    path = folder / "actives" / "iter_0012" / "layer_02.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def unwritten(folder: Path) -> None:
    path = folder / "actives" / "iter_0012" / "layer_02.parquet"
    table = pq.read_table(path)
    indices = table["indices"].to_pylist()
    indices[149] = [-1, -1, -1]
    pq.write_table(table.set_column(1, "indices", [indices]), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "traces='{folder}' is not valid: a folder with samples/ and actives/"),
        (lambda folder: shutil.rmtree(folder / "samples"), "{folder}/samples: no *.parquet, the tokens of the traces"),
        (lambda folder: shutil.rmtree(folder / "actives"), "{folder}/actives: no iter_N, the choices of experts after"),
        (truncated, "{folder}/actives/iter_0012/layer_02.parquet: not a complete Parquet file, ArrowInvalid: "),
        (unwritten, "{folder}/actives/iter_0012/layer_02.parquet: row 149: indices=[-1, -1, -1]: must be 0 to 11"),
    ],
)
def test_traces_that_are_not_whole_are_one_line(
    spoil: object, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they may be is tested with the reader; here that nothing is written, whenever the fault is found."""
    spoil(folder)  # type: ignore[operator]
    before = files(folder.parent)
    assert refusal(capsys, "analyse", "--traces", folder).startswith(message.format(folder=folder))
    assert files(folder.parent) == before
    assert not list(folder.parent.glob("**/analysis*"))
