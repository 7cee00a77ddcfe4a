"""What is written as traces is what the router chose, once per token; what a killed writer leaves is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing, route
from dsv2.models.transformer import Transformer
from dsv2.routing import recording
from dsv2.routing.observed import passes
from dsv2.routing.recording import write_samples, write_step
from dsv2.routing.traces import MOST_EXPERTS, open_traces
from tests.references.routing import LIMITED, build, text

TEXT = text(sequences=9, length=11)  # 99 tokens, in batches of 4, 4 and 1 sequences


def record(folder: Path, models: dict[int, Transformer]) -> None:
    write_samples(folder, TEXT.inputs.flatten().numpy())
    for step, model in models.items():
        outputs = passes(model, TEXT, 4, lambda sequences: None)
        layers = list(model.config.moe_layers)
        write_step(folder, step, layers, model.config.moe.num_experts, (output.routings for output, _ in outputs))


@pytest.mark.parametrize("rows", [1, 20, 1 << 16])
@pytest.mark.parametrize("config", [LIMITED, MoE.Config(num_experts=8, top_k=1, expert_dim=8)], ids=["K=4", "K=1"])
def test_files_hold_the_top_k_of_each_token_once(
    config: MoE.Config, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of row groups: ids and scores are those of the affinities, recomputed, and row i is token i."""
    monkeypatch.setattr(recording, "ROWS", rows)
    models = {0: build(config, seed=1), 40: build(config, seed=2)}
    record(tmp_path, models)
    traces = open_traces(tmp_path)
    assert (traces.steps, traces.layers, traces.num_tokens) == ((0, 40), (0, 1), 99)
    assert (traces.num_experts, traces.top_k) == (config.num_experts, config.top_k)
    for index, layer in enumerate(traces.layers):
        ((tokens, choices),) = traces.blocks(layer)
        np.testing.assert_array_equal(tokens, TEXT.inputs.flatten())
        for model, (experts, scores) in zip(models.values(), choices, strict=True):
            with torch.no_grad():
                affinities = model(TEXT.inputs).routings[index].affinities
            limits = {"num_devices": config.num_devices, "max_devices": config.max_devices}
            expected, gates = route(affinities, top_k=config.top_k, **limits)
            assert all(len(set(row)) == config.top_k for row in experts.tolist())
            np.testing.assert_array_equal(np.sort(experts), np.sort(expected.flatten(0, 1)))
            assert (np.diff(scores) <= 0).all()  # highest first
            np.testing.assert_allclose(scores, -np.sort(-gates.flatten(0, 1).numpy()), rtol=1e-5)
            np.testing.assert_allclose(
                scores, np.take_along_axis(affinities.flatten(0, 1).numpy(), experts.astype(int), 1), rtol=1e-5
            )


def routing(experts: list[list[int]], num_experts: int) -> Routing:
    """Make a routing of one sequence whose experts have scores that fall from the last to the first."""
    chosen = torch.tensor([experts])
    gates = torch.arange(1.0, chosen.shape[-1] + 1).expand(chosen.shape)
    return Routing(torch.zeros(1, len(experts), num_experts), chosen, gates)


@pytest.mark.parametrize("num_experts", [2, 301, MOST_EXPERTS])
def test_the_largest_id_survives_the_type_of_the_file(num_experts: int, tmp_path: Path) -> None:
    last = num_experts - 1
    write_step(tmp_path, 7, [3], num_experts, [[routing([[0, last], [last, 0]], num_experts)]])
    table = pq.read_table(tmp_path / "actives" / "iter_0007" / "layer_03.parquet")
    assert table.schema.field("indices").type.value_type == pa.int16()
    assert table.schema.field("scores").type.value_type == pa.float32()
    assert table["indices"].to_pylist() == [[last, 0], [0, last]]
    assert table["scores"].to_pylist() == [[2, 1], [2, 1]]


def test_an_expert_without_tokens_counts(tmp_path: Path) -> None:
    """The number of experts is that of the model, not the largest index plus 1."""
    write_samples(tmp_path, np.array([5, 6]))
    write_step(tmp_path, 0, [0], 64, [[routing([[0, 1], [2, 3]], 64)]])
    assert open_traces(tmp_path).num_experts == 64


def test_token_ids_up_to_those_of_large_vocabularies(tmp_path: Path) -> None:
    write_samples(tmp_path, np.array([0, 300, 70_000, 102_399]))
    write_step(tmp_path, 0, [0], 4, [[routing([[0], [1], [2], [3]], 4)]])
    assert np.concatenate(list(open_traces(tmp_path).tokens())).tolist() == [0, 300, 70_000, 102_399]
    assert pq.read_schema(tmp_path / "samples" / "000.parquet").field("token_id").type == pa.int32()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([[0, 1], [-1, -1]], r"row 1: indices=\[-1, -1\]: must be 0 to 3"),
        ([[0, 4], [1, 0]], r"row 0: indices=\[4, 0\]: must be 0 to 3"),
        ([[0, 1], [2, 2]], r"row 1: indices=\[2, 2\]: must be different experts"),
    ],
)
def test_what_is_no_choice_is_not_written(experts: list[list[int]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"layer_00\.parquet: {message}"):
        write_step(tmp_path, 0, [0], 4, [[routing(experts, 4)]])


def test_what_a_killed_writer_leaves_is_refused_and_what_was_complete_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk as it is after the first of three batches of the second step, when 8 of 99 rows were written."""
    monkeypatch.setattr(recording, "ROWS", 8)
    model, left = build(LIMITED), tmp_path / "left"

    def batches() -> Iterator[list[Routing]]:
        for number, (output, _) in enumerate(passes(model, TEXT, 4, lambda sequences: None)):
            if number == 1:
                shutil.copytree(tmp_path / "written", left)
            yield output.routings

    (tmp_path / "written").mkdir()
    record(tmp_path / "written", {4: model})
    write_step(tmp_path / "written", 8, [0, 1], 16, batches())
    assert open_traces(tmp_path / "written").steps == (4, 8)
    with pytest.raises(ValueError, match=r"iter_0008/layer_00\.parquet: not a complete Parquet file"):
        open_traces(left)
    shutil.rmtree(left / "actives" / "iter_0008")
    traces = open_traces(left)
    assert traces.steps == (4,)
    assert sum(len(tokens) for tokens, _ in traces.blocks(1)) == 99
