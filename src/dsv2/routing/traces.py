"""Routing traces as files in the layout that FLAME-MoE publishes (arXiv 2505.20225), read in blocks of rows.

samples/*.parquet                 token_id int32, one row per token; the files in the order of their numbers
actives/iter_N/layer_LL.parquet   scores list[K] float, indices list[K] int: the affinities of the experts that layer LL
                                  chose after step N, and the experts; row i belongs to token i

At most `ROWS` rows of a file are in memory at a time. Rows are numbered from 0. `recording` writes this layout.

N tokens, n tokens of a block, E routed experts, K of them per token.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dsv2.config import ConfigError
from dsv2.printing import described

ROWS = 1 << 16  # of a block
BUFFER = 1 << 20  # bytes read at once; without it, pyarrow would hold the column of a whole row group
MOST_EXPERTS, MOST_IDS = 1 << 12, 1 << 24  # larger numbers are no experts or token ids, and would need memory
NUM_EXPERTS = b"num_experts"  # key in the schema of the layers that we write; their own readers ignore it
Ints = NDArray[np.integer[Any]]
Scores = NDArray[np.floating[Any]]


class Chosen(NamedTuple):
    """The experts that one layer chose for the tokens of a block, and their scores."""

    experts: Ints  # (n, K)
    scores: Scores  # (n, K)


class Traces(NamedTuple):
    """An opened directory of traces, complete as far as its names and sizes say."""

    folder: Path
    steps: tuple[int, ...]  # N of iter_N, ascending
    layers: tuple[int, ...]  # LL of layer_LL, ascending; FLAME-MoE counts from 1, we from 0
    num_tokens: int
    num_experts: int  # E
    top_k: int  # K
    samples: tuple[Path, ...]
    actives: Mapping[tuple[int, int], Path]  # by step and layer

    def tokens(self, rows: int = ROWS) -> Iterator[Ints]:
        """Yield the ids of all tokens in blocks of `rows`; the last is shorter. Raises ValueError for what is no id."""
        return _regrouped(map(_token_ids, _batches(self.samples, ("token_id",), rows)), rows)

    def blocks(self, layer: int, rows: int = ROWS) -> Iterator[tuple[Ints, list[Chosen]]]:
        """Yield the token ids of each block, and what the layer chose for them after each step.

        Raises ValueError, naming file and row, for rows without K different experts below E and K finite scores.
        """
        files = [self._choices(self.actives[step, layer], rows) for step in self.steps]
        for tokens, *choices in zip(self.tokens(rows), *files, strict=True):
            assert all(len(choice.experts) == len(tokens) for choice in choices)
            yield tokens, choices

    def _choices(self, path: Path, rows: int) -> Iterator[Chosen]:
        for part in _batches((path,), ("scores", "indices"), rows):
            choice = Chosen(_lists(part, "indices", self.top_k), _lists(part, "scores", self.top_k))
            require_valid(choice, self.num_experts, path, part.row)
            yield choice


class _Part(NamedTuple):
    """Some rows of a file, and the number of the first."""

    path: Path
    row: int
    batch: pa.RecordBatch


def open_traces(folder: str | Path, *, num_experts: int | None = None) -> Traces:
    """Open a directory of traces: list its files and compare their columns and numbers of rows.

    Without `num_experts`, E is what our own traces state, else the largest index plus 1, by the files' statistics.
    Raises ValueError, naming the file, for a folder or file that is missing, incomplete or of another size.
    """
    folder = Path(folder)
    samples = sorted((folder / "samples").glob("*.parquet"), key=_by_numbers)
    steps = _numbered(folder / "actives", r"iter_(\d+)")
    if not samples:
        raise ValueError(f"{folder / 'samples'}: no *.parquet, the tokens of the traces")
    if not steps:
        raise ValueError(f"{folder / 'actives'}: no iter_N, the choices of experts after step N")
    by_step = {step: _numbered(path, r"layer_(\d+)\.parquet") for step, path in steps.items()}
    layers = sorted(set().union(*by_step.values()))
    if not layers:
        raise ValueError(f"{steps[max(steps)]}: no layer_LL.parquet")
    for step, path in steps.items():
        for layer in set(layers) - by_step[step].keys():
            raise ValueError(f"{path / f'layer_{layer:02d}.parquet'}: missing, though other steps have this layer")
    num_tokens = sum(_footer(path, {"token_id": pa.types.is_integer}).metadata.num_rows for path in samples)
    if not num_tokens:
        raise ValueError(f"{samples[0]}: no rows")
    actives = {(step, layer): by_step[step][layer] for step in sorted(by_step) for layer in layers}
    largest = [_require_layer(path, num_tokens) for path in actives.values()]
    first = next(iter(actives.values()))
    if num_experts is None:
        num_experts = _stated(first) or _inferred(largest)
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise ConfigError("experts", num_experts, f"1 to {MOST_EXPERTS:,}")
    return Traces(
        folder=folder,
        steps=tuple(sorted(steps)),
        layers=tuple(layers),
        num_tokens=num_tokens,
        num_experts=num_experts,
        top_k=_top_k(first),
        samples=tuple(samples),
        actives=actives,
    )


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Map the numbers in the names of a folder's entries to these; empty without the folder."""
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := re.fullmatch(pattern, path.name):
            number = int(match[1])
            if number in numbered:
                raise ValueError(f"{path}: has the number of {numbered[number].name}")
            numbered[number] = path
    return numbered


def _by_numbers(path: Path) -> list[str | int]:
    """Sort 2.parquet before 10.parquet."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _footer(path: Path, columns: Mapping[str, Any]) -> pq.ParquetFile:
    """Open a file and require its columns, each of a type that its predicate accepts."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a complete Parquet file, {described(error)}") from None
    for name, accepts in columns.items():
        index = file.schema_arrow.get_field_index(name)
        if index < 0:
            raise ValueError(f"{path}: no column {name}; it has {', '.join(file.schema_arrow.names) or 'none'}")
        if not accepts(kind := file.schema_arrow.field(index).type):
            raise ValueError(f"{path}: its column {name} has the type {kind}")
    return file


def _list_of(accepts: Any) -> Any:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return lambda kind: any(is_kind(kind) for is_kind in kinds) and accepts(kind.value_type)


LAYER = {"scores": _list_of(pa.types.is_floating), "indices": _list_of(pa.types.is_integer)}


def _require_layer(path: Path, num_tokens: int) -> int | None:
    """Require the columns and rows of a layer; return the largest index by the file's statistics, if it has any."""
    metadata = _footer(path, LAYER).metadata
    if metadata.num_rows != num_tokens:
        raise ValueError(f"{path}: {metadata.num_rows:,} rows, but the samples have {num_tokens:,}")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    kept = [column.statistics for column in columns if column.path_in_schema.startswith("indices.")]
    if not all(statistics is not None and statistics.has_min_max for statistics in kept):
        return None
    return max(statistics.max for statistics in kept)


def _inferred(largest: Sequence[int | None]) -> int:
    """Return E by the largest index of each file."""
    known = [index for index in largest if index is not None]
    if len(known) < len(largest):
        raise ConfigError("experts", None, "a number, since not all files have statistics of their indices")
    return max(*known, 0) + 1


def _stated(path: Path) -> int | None:
    """Return the number of experts in the schema of a layer, which a run's own traces have."""
    stated = (_footer(path, LAYER).schema_arrow.metadata or {}).get(NUM_EXPERTS, b"")
    return int(stated) if stated.isdigit() else None


def _top_k(path: Path) -> int:
    """Return the length of a layer's first list."""
    part = next(_batches((path,), ("indices",), 1))
    top_k = len(part.batch.column("indices")[0].as_py() or ())
    if not top_k:
        raise ValueError(f"{path}: row 0 has no indices")
    return top_k


def _batches(paths: Iterable[Path], columns: Sequence[str], rows: int) -> Iterator[_Part]:
    """Yield the rows of the files in turn, `rows` at a time; each file's last part is shorter."""
    for path in paths:
        row = 0
        try:
            for batch in _footer(path, {}).iter_batches(batch_size=rows, columns=list(columns), use_threads=False):
                yield _Part(path, row, batch)
                row += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: damaged in row {row} or later, {described(error)}") from None


def _token_ids(part: _Part) -> Ints:
    column = part.batch.column("token_id")
    ids = column.fill_null(-1).to_numpy(zero_copy_only=False)
    if len(wrong := np.flatnonzero((ids < 0) | (ids >= MOST_IDS))):
        value = column[int(wrong[0])].as_py()
        raise ValueError(f"{part.path}: row {part.row + wrong[0]}: token_id={value}: must be 0 to {MOST_IDS - 1:,}")
    return ids


def _lists(part: _Part, name: str, top_k: int) -> Any:
    """Return the lists of a column as (n, K)."""
    column = part.batch.column(name)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    if len(wrong := np.flatnonzero(lengths != top_k)):
        where, length = f"{part.path}: row {part.row + wrong[0]}", lengths[wrong[0]]
        raise ValueError(f"{where}: {length} {name}: must be {top_k}, as in the first row of all")
    values = column.flatten()
    if values.null_count:
        row = part.row + np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0] // top_k
        raise ValueError(f"{part.path}: row {row}: null among its {name}")
    return values.to_numpy(zero_copy_only=False).reshape(-1, top_k)


def require_valid(choice: Chosen, num_experts: int, path: Path, row: int) -> None:
    """Raise ValueError, naming the row, unless the experts are different numbers below E and the scores finite."""
    experts, scores = choice
    outside = (experts < 0) | (experts >= num_experts)
    if outside.any():
        wrong = int(outside.any(1).argmax())
        raise ValueError(
            f"{path}: row {row + wrong}: indices={experts[wrong].tolist()}: must be 0 to {num_experts - 1}"
        )
    for slot in range(1, experts.shape[1]):
        again = experts[:, slot:] == experts[:, :-slot]
        if again.any():
            wrong = int(again.any(1).argmax())
            raise ValueError(f"{path}: row {row + wrong}: indices={experts[wrong].tolist()}: must be different experts")
    finite = np.isfinite(scores)
    if not finite.all():
        wrong = int(finite.all(1).argmin())
        raise ValueError(f"{path}: row {row + wrong}: scores={scores[wrong].tolist()}: must be finite")


def _regrouped(parts: Iterable[Ints], rows: int) -> Iterator[Ints]:
    """Yield the elements of arrays in arrays of `rows`; the last is shorter."""
    held, count = list[Ints](), 0
    for part in parts:
        held.append(part)
        count += len(part)
        while count >= rows:
            whole = np.concatenate(held)
            yield whole[:rows]
            held, count = [whole[rows:]], count - rows
    if count:
        yield np.concatenate(held)
