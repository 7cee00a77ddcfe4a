"""Traces are read as they were written, in blocks; those that are not whole are refused with the file and the row."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dsv2.routing.traces import MOST_IDS, Chosen, open_traces
from tests.references.routing_traces import LAYERS, STEPS, E, K, Made, N, make, write, write_tokens

LAST = "actives/iter_0100/layer_10.parquet"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("traces"))


@pytest.fixture
def made(shared: Made, tmp_path: Path) -> Made:
    """Traces that a test may spoil."""
    shutil.copytree(shared.folder, tmp_path / "traces")
    return shared._replace(folder=tmp_path / "traces")


def read(folder: Path, *, rows: int = 64, num_experts: int | None = None) -> None:
    """Read every row."""
    traces = open_traces(folder, num_experts=num_experts)
    for layer in traces.layers:
        for _ in traces.blocks(layer, rows):
            pass


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_a_directory_says_what_it_holds(shared: Made) -> None:
    traces = open_traces(shared.folder)
    assert (traces.steps, traces.layers) == (STEPS, LAYERS)
    assert (traces.num_tokens, traces.num_experts, traces.top_k) == (N, E, K)
    assert [path.name for path in traces.samples] == ["0.parquet", "1.parquet", "2.parquet"]


@pytest.mark.parametrize("rows", [1, 37, 64, N, 10_000])
def test_rows_come_in_blocks_that_fit_together(shared: Made, rows: int) -> None:
    """Whatever the row groups and files: no block is larger, only the last is smaller, and row i is token i."""
    traces = open_traces(shared.folder)
    for layer in LAYERS:
        blocks = list(traces.blocks(layer, rows))
        assert [len(tokens) for tokens, _ in blocks] == [min(rows, N - first) for first in range(0, N, rows)]
        np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in blocks]), shared.tokens)
        for number, step in enumerate(STEPS):
            for part in ("experts", "scores"):
                found = np.concatenate([getattr(choices[number], part) for _, choices in blocks])
                np.testing.assert_array_equal(found, getattr(shared.choices[step, layer], part))
                assert found.dtype == getattr(shared.choices[step, layer], part).dtype


def test_files_of_samples_are_in_the_order_of_their_numbers(made: Made) -> None:
    shutil.rmtree(made.folder / "samples")
    for number in range(15):
        write_tokens(made.folder / "one", np.arange(10) + 10 * number)
        (made.folder / "samples").mkdir(exist_ok=True)
        (made.folder / "one" / "samples" / "0.parquet").rename(made.folder / "samples" / f"part-{number}.parquet")
    tokens = np.concatenate(list(open_traces(made.folder).tokens(7)))
    np.testing.assert_array_equal(tokens, np.arange(150))


@pytest.mark.parametrize("kind", ["large", "fixed"])
def test_lists_may_be_of_any_kind(made: Made, kind: str) -> None:
    path = made.folder / LAST
    choice = made.choices[100, 10]
    list_of = pa.large_list if kind == "large" else lambda value: pa.list_(value, K)
    columns = [
        pa.array(list(choice.scores), list_of(pa.float16())),
        pa.array(list(choice.experts), list_of(pa.int64())),
    ]
    pq.write_table(pa.Table.from_arrays(columns, names=["scores", "indices"]), path, row_group_size=50)
    ((_, choices),) = open_traces(made.folder).blocks(10, N)
    np.testing.assert_array_equal(choices[-1].experts, choice.experts)
    np.testing.assert_array_equal(choices[-1].scores, choice.scores)


def test_the_number_of_experts_is_the_largest_index_unless_it_is_given(made: Made) -> None:
    assert open_traces(made.folder, num_experts=64).num_experts == 64
    choice = made.choices[100, 10]
    (made.folder / LAST).unlink()
    pq.write_table(
        pa.table({"scores": list(choice.scores), "indices": list(choice.experts)}),
        made.folder / LAST,
        write_statistics=False,
    )
    with pytest.raises(ValueError, match="experts=None is not valid: a number, since not all files have statistics"):
        open_traces(made.folder)
    read(made.folder, num_experts=E)


def test_other_files_are_left_alone(made: Made) -> None:
    (made.folder / "README.md").write_text("text")
    (made.folder / "actives" / "iter_last").mkdir()
    (made.folder / "actives" / "iter_0004" / "layer_02.parquet.tmp").write_text("half")
    assert open_traces(made.folder).steps == STEPS


# ---- what is not whole -----------------------------------------------------------------------------------------------


def change(name: str, row: int, slot: int, value: float) -> Callable[[Made], None]:
    """Return what sets one score or index of the last layer at the last step."""

    def changed(made: Made) -> None:
        parts = {part: getattr(made.choices[100, 10], part).copy() for part in ("experts", "scores")}
        parts[name][row, slot] = value
        write(made.folder / LAST, Chosen(**parts))

    return changed


def lists(scores: list | None = None, indices: list | None = None) -> Callable[[Made], None]:
    """Return what replaces row 70 of the last layer at the last step."""

    def changed(made: Made) -> None:
        choice = made.choices[100, 10]
        columns = {"scores": choice.scores.tolist(), "indices": choice.experts.tolist()}
        columns["scores"][70] = columns["scores"][70] if scores is None else scores[0]
        columns["indices"][70] = columns["indices"][70] if indices is None else indices[0]
        kinds = {"scores": pa.list_(pa.float16()), "indices": pa.list_(pa.int16())}
        table = {name: pa.array(values, kinds[name]) for name, values in columns.items()}
        pq.write_table(pa.table(table), made.folder / LAST)

    return changed


def unwritten(made: Made) -> None:
    """The buffer that was to hold the choices, as it was made: of the right shape, filled with -1."""
    write(made.folder / LAST, Chosen(np.full((N, K), -1, np.int16), np.zeros((N, K), np.float16)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unwritten, r"row 0: indices=\[-1, -1, -1\]: must be 0 to 11"),
        (change("experts", 149, 2, -1), r"row 149: indices=\[\d+, \d+, -1\]: must be 0 to 11"),
        (change("experts", 3, 0, 12), r"row 3: indices=\[12, \d+, \d+\]: must be 0 to 11"),
        (change("scores", 64, 1, np.nan), r"row 64: scores=\[[\d.]+, nan, [\d.]+\]: must be finite"),
        (change("scores", 65, 1, np.inf), r"row 65: scores=\[[\d.]+, inf, [\d.]+\]: must be finite"),
        (lists(indices=[[1, 2, 1]]), r"row 70: indices=\[1, 2, 1\]: must be different experts"),
        (lists(indices=[[1, 2]]), r"row 70: 2 indices: must be 3, as in the first row of all"),
        (lists(scores=[[0.5] * 4]), r"row 70: 4 scores: must be 3"),
        (lists(scores=[None]), r"row 70: 0 scores: must be 3"),
        (lists(scores=[[0.5, None, 0.25]]), r"row 70: null among its scores"),
        (lists(indices=[[None, 1, 2]]), r"row 70: null among its indices"),
    ],
)
@pytest.mark.parametrize("rows", [16, 10_000])
def test_rows_that_are_no_choice_of_experts_are_named(
    made: Made, spoil: Callable[[Made], None], message: str, rows: int
) -> None:
    spoil(made)
    with pytest.raises(ValueError, match=f"^{made.folder / LAST}: {message}"):
        read(made.folder, rows=rows, num_experts=E)


def test_a_buffer_without_content_is_refused_whatever_the_number_of_experts(made: Made) -> None:
    for path in made.folder.glob("actives/*/*"):
        write(path, Chosen(np.full((N, K), -1, np.int16), np.zeros((N, K), np.float16)))
    with pytest.raises(ValueError, match=r"layer_02\.parquet: row 0: indices=\[-1, -1, -1\]"):
        read(made.folder)


@pytest.mark.parametrize("value", [-1, MOST_IDS, None])
def test_what_is_no_token_id_is_named(made: Made, value: int | None) -> None:
    tokens = [*made.tokens.tolist()[75:]]
    tokens[3] = value
    pq.write_table(pa.table({"token_id": pa.array(tokens, pa.int32())}), made.folder / "samples" / "2.parquet")
    with pytest.raises(ValueError, match=rf"2\.parquet: row 3: token_id={value}: must be 0 to 16,777,215"):
        read(made.folder)


def remove(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return spoil


def truncate(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def fewer_rows(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / LAST).slice(1), folder / LAST)


def other_columns(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / LAST).rename_columns(["scores", "experts"]), folder / LAST)


def other_types(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / LAST).rename_columns(["indices", "scores"]), folder / LAST)


def twice(folder: Path) -> None:
    shutil.copytree(folder / "actives" / "iter_0004", folder / "actives" / "iter_4")


def no_rows(folder: Path) -> None:
    for path in (folder / "samples").iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("samples"), r"samples: no \*\.parquet, the tokens of the traces"),
        (remove("actives"), r"actives: no iter_N, the choices of experts after step N"),
        (
            remove("actives/iter_0004/layer_02.parquet"),
            r"iter_0004/layer_02\.parquet: missing, though other steps have",
        ),
        (truncate(LAST), r"iter_0100/layer_10\.parquet: not a complete Parquet file, ArrowInvalid: "),
        (truncate("samples/0.parquet"), r"samples/0\.parquet: not a complete Parquet file, ArrowInvalid: "),
        (fewer_rows, r"layer_10\.parquet: 149 rows, but the samples have 150"),
        (remove("samples/2.parquet"), r"iter_0004/layer_02\.parquet: 150 rows, but the samples have 75"),
        (other_columns, r"layer_10\.parquet: no column indices; it has scores, experts"),
        (other_types, r"layer_10\.parquet: its column scores has the type list<.*int16>"),
        (twice, r"actives/iter_4: has the number of iter_0004"),
        (no_rows, r"0\.parquet: no rows"),
    ],
)
def test_files_that_do_not_fit_together_are_named(made: Made, spoil: Callable[[Path], None], message: str) -> None:
    spoil(made.folder)
    with pytest.raises(ValueError, match=message) as error:
        open_traces(made.folder)
    assert str(error.value).startswith(str(made.folder))
    assert "\n" not in str(error.value)


def test_a_file_that_is_damaged_inside_is_named(made: Made) -> None:
    path = made.folder / LAST
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: damaged in row \d+ or later, "):
        read(made.folder, rows=37)


def test_no_layer_at_all(made: Made) -> None:
    for path in made.folder.glob("actives/*/*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"iter_0100: no layer_LL\.parquet"):
        open_traces(made.folder)


@pytest.mark.parametrize("num_experts", [0, -3, 10_000])
def test_a_number_of_experts_that_cannot_be(shared: Made, num_experts: int) -> None:
    with pytest.raises(ValueError, match=f"experts={num_experts} is not valid: 1 to 4,096"):
        open_traces(shared.folder, num_experts=num_experts)
