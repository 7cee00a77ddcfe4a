"""Writing routing traces in the layout of `traces`, in blocks of rows.

N tokens, E routed experts, K of them per token.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsv2.models.moe.router import Routing
from dsv2.routing.traces import NUM_EXPERTS, ROWS, Chosen, Ints, require_valid


def write_samples(folder: Path, tokens: Ints) -> None:
    """Write the token ids (N,) as the samples of new traces."""
    (folder / "samples").mkdir()
    table = pa.table({"token_id": pa.array(tokens, pa.int32())})
    pq.write_table(table, folder / "samples" / "000.parquet", row_group_size=ROWS)


def write_step(
    folder: Path, step: int, layers: Sequence[int], num_experts: int, batches: Iterable[Sequence[Routing]]
) -> None:
    """Write what the layers chose after a step, from the routings of all layers batch by batch.

    Experts are in the order of their scores, highest first. Raises ValueError for experts that are no choice.
    """
    iteration = folder / "actives" / f"iter_{step:04d}"
    iteration.mkdir(parents=True)
    columns = {"scores": pa.list_(pa.float32()), "indices": pa.list_(pa.int16())}
    schema = pa.schema(columns, metadata={NUM_EXPERTS: str(num_experts)})
    paths = [iteration / f"layer_{layer:02d}.parquet" for layer in layers]
    with ExitStack() as stack:
        writers = [stack.enter_context(pq.ParquetWriter(path, schema)) for path in paths]
        row = 0
        for choices in _joined(map(_choices, batches)):
            for path, writer, choice in zip(paths, writers, choices, strict=True):
                require_valid(choice, num_experts, path, row)
                writer.write_table(_table(choice, schema))
            row += len(choices[0].experts)


def _choices(routings: Sequence[Routing]) -> list[Chosen]:
    """Return what each layer chose for the tokens of one batch, highest score first."""
    choices = []
    for routing in routings:
        experts, scores = (part.detach().flatten(0, 1).cpu() for part in (routing.experts, routing.gates.float()))
        order = scores.argsort(dim=-1, descending=True, stable=True)
        choices.append(Chosen(experts.gather(-1, order).numpy(), scores.gather(-1, order).numpy()))
    return choices


def _joined(batches: Iterable[list[Chosen]]) -> Iterator[list[Chosen]]:
    """Join small batches, so that row groups have `ROWS` rows or more."""
    held, count = list[list[Chosen]](), 0
    for batch in batches:
        held.append(batch)
        count += len(batch[0].experts)
        if count >= ROWS:
            yield _concatenated(held)
            held, count = [], 0
    if count:
        yield _concatenated(held)


def _concatenated(batches: list[list[Chosen]]) -> list[Chosen]:
    return [Chosen(*map(np.concatenate, zip(*layer, strict=True))) for layer in zip(*batches, strict=True)]


def _table(choice: Chosen, schema: pa.Schema) -> pa.Table:
    rows, top_k = choice.experts.shape
    offsets = pa.array(np.arange(0, rows * top_k + 1, top_k, dtype=np.int32))
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), field.type.value_type))
        for values, field in zip((choice.scores, choice.experts), schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)
