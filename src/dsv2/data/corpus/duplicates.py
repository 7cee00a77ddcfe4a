"""Near-duplicates by MinHash, with datatrove's steps: signatures, pairs per bucket, clusters.

Documents are numbered by shard and row. Signatures are kept per shard, sorted files merge them as streams, and only the
documents that have a duplicate are held in memory.
"""

import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashBuildIndex, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import SENTINEL, MinhashConfig
from datatrove.utils.hashing import HashConfig
from loguru import logger

from dsv2.data.corpus.settings import Duplicates
from dsv2.data.corpus.words import Padded

_CHUNK = 20_000  # shingles at a time
INDEX = "held_out"


class Found(NamedTuple):
    """What the search for duplicates gave."""

    removed: dict[int, np.ndarray]  # shard -> rows of all but one document of each cluster, ascending
    indexed: dict[int, np.ndarray]  # shard -> rows of all documents of clusters with one of the index
    clusters: dict[int, int]  # size of a cluster without one of the index -> how many clusters have it


class _Signature(MinhashDedupSignature):
    """datatrove's, with the shingles of a long document in chunks: their smallest hashes are those of the whole."""

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        parts = np.split(shingles, range(_CHUNK, len(shingles), _CHUNK))
        signatures = [super(_Signature, self).get_signature(part) for part in parts]
        return [np.min(bucket, axis=0).tolist() for bucket in zip(*signatures, strict=True)]


def sign(texts: Iterable[str], shard: int, folder: Path, config: Duplicates.Config) -> None:
    """Write the signatures of a shard's texts to `folder`, a file per bucket."""
    with _quiet():
        step = _Signature(str(folder), _minhash(config), language=Padded(config.shingle))
        step.run((Document(text=text, id="") for text in texts), rank=shard)


def pick(source: Path, target: Path, shard: int, rows: np.ndarray, config: Duplicates.Config) -> None:
    """Copy the signatures of some rows of a shard to `target`; their order stays."""
    dtype = np.dtype([("hashes", "<u8", (config.hashes,)), ("row", "<u4")])
    for bucket in range(config.buckets):
        name = f"bucket_{bucket:03d}/{shard:05d}.minhash.sig"
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        signatures = np.fromfile(source / name, dtype=dtype)
        signatures[np.isin(signatures["row"], rows)].tofile(target / name)


def find(signatures: Path, scratch: Path, config: Duplicates.Config, index: Path | None = None) -> Found:
    """Cluster near-duplicates, and those of an index with them; `scratch` must be free."""
    pairs, clusters = scratch / "pairs", scratch / "clusters"
    with _quiet():
        for bucket in range(config.buckets):
            MinhashDedupBuckets(
                str(signatures),
                str(pairs),
                index_folder=None if index is None else str(index),
                config=_minhash(config),
                only_dedup_in_index=False,
                lines_to_buffer=1000,
            ).run(None, bucket, config.buckets)
        step = MinhashDedupCluster(str(pairs), str(clusters), _minhash(config), save_cluster_id=True)
        step.run(None, 0, 1)
    found = _read(clusters)
    shutil.rmtree(scratch)
    return found


def build_index(signatures: Path, folder: Path, config: Duplicates.Config) -> None:
    """Write the index of signatures, against which `find` compares others."""
    with _quiet():
        for bucket in range(config.buckets):
            step = MinhashBuildIndex(str(signatures), str(folder), INDEX, _minhash(config), lines_to_buffer=1000)
            step.run(None, bucket, config.buckets)


def _minhash(config: Duplicates.Config) -> MinhashConfig:
    return MinhashConfig(
        n_grams=config.shingle,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes,
        hash_config=HashConfig(precision=64, hash_fc="sha1"),
    )


def _read(folder: Path) -> Found:
    """Read datatrove's clusters; all that touch the index are one, with the document SENTINEL of the file SENTINEL."""
    removed = {int(path.stem): np.fromfile(path, dtype="<u4") for path in sorted(folder.glob("*.remove"))}
    members = {int(path.stem): np.fromfile(path, dtype="<u4").reshape(-1, 2) for path in folder.glob("*.clusters")}
    of_index = members.pop(SENTINEL)[0, 1] if SENTINEL in members else None
    removed.pop(SENTINEL, None)
    indexed, sizes = dict[int, np.ndarray](), dict[int, int]()
    for shard, rows in sorted(members.items()):
        touched = rows[:, 1] == of_index if of_index is not None else np.zeros(len(rows), dtype=bool)
        indexed[shard] = rows[touched, 0]
        removed[shard] = np.setdiff1d(removed.get(shard, np.array([], dtype="<u4")), indexed[shard])
        for number, count in zip(*np.unique(rows[~touched, 1], return_counts=True), strict=True):
            sizes[int(number)] = sizes.get(int(number), 0) + int(count)
    values, counts = np.unique(list(sizes.values()), return_counts=True)
    return Found(removed, indexed, {int(size): int(count) for size, count in zip(values, counts, strict=True)})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep datatrove's log lines and bars to itself."""
    logger.disable("datatrove")
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.enable("datatrove")
