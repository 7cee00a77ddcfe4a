"""Near-duplicates: which are found, what stays of a cluster, and what the index does to it."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dsv2.data.corpus.duplicates import Found, build_index, find, pick, sign
from dsv2.data.corpus.settings import Duplicates
from tests.references.raw_texts import page, review

CONFIG = Duplicates.Config()


def search(shards: list[list[str]], folder: Path, index: list[str] | None = None) -> Found:
    for number, texts in enumerate(shards):
        sign(texts, number, folder / "signatures", CONFIG)
    if index is not None:
        sign(index, 0, folder / "known", CONFIG)
        build_index(folder / "known", folder / "index", CONFIG)
    return find(folder / "signatures", folder / "scratch", CONFIG, None if index is None else folder / "index")


def rows(found: dict[int, np.ndarray]) -> set[tuple[int, int]]:
    return {(shard, int(row)) for shard, chosen in found.items() for row in chosen}


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    texts = [page(1), review(1), page(2), page(1).replace("harbour", "haven"), review(1) + "。", "很好", "好", "很好"]
    found = search([texts], tmp_path)
    assert rows(found.removed) <= {(0, n) for n in (0, 1, 3, 4, 5, 7)}
    assert [sum((0, n) in rows(found.removed) for n in pair) for pair in ((0, 3), (1, 4), (5, 7))] == [1, 1, 1]
    assert found.clusters == {2: 3}
    assert not rows(found.indexed)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("split", [1, 3])
def test_one_of_a_cluster_stays_and_none_if_the_index_has_one(tmp_path: Path, order: tuple, split: int) -> None:
    """Pitfall: d1 matches d2 and the index matches d1 alone; the mark on d1 must not be lost with d2's."""
    base = page(5, sentences=24).splitlines()
    d2 = "\n".join(base)
    d1 = "\n".join([*base[:22], page(70).splitlines()[0], page(71).splitlines()[1]])
    known = "\n".join([*base[2:22], *page(72).splitlines()[:2], *d1.splitlines()[22:]])
    texts = [[d1, d2, page(9)][n] for n in order]
    shards = [texts] if split == 1 else [[text] for text in texts]
    at = {n: ((0, order.index(n)) if split == 1 else (order.index(n), 0)) for n in range(3)}
    without = search(shards, tmp_path / "without")
    assert len(rows(without.removed)) == 1
    assert rows(without.removed) < {at[0], at[1]}
    with_index = search(shards, tmp_path / "with", index=[known])
    assert rows(with_index.indexed) == {at[0], at[1]}
    assert not rows(with_index.removed)
    assert not with_index.clusters


def test_some_rows_are_picked(tmp_path: Path) -> None:
    sign([page(1), page(2), page(1)], 0, tmp_path / "all", CONFIG)
    pick(tmp_path / "all", tmp_path / "some", 0, np.array([0, 1]), CONFIG)
    assert not rows(find(tmp_path / "some", tmp_path / "scratch", CONFIG).removed)
    pick(tmp_path / "all", tmp_path / "none", 0, np.array([], dtype=int), CONFIG)
    assert not rows(find(tmp_path / "none", tmp_path / "scratch", CONFIG).removed)


def test_long_documents_are_signed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign([page(1)], 0, tmp_path / "whole", CONFIG)
    monkeypatch.setattr("dsv2.data.corpus.duplicates._CHUNK", 7)
    sign([page(1)], 0, tmp_path / "parts", CONFIG)
    for path in (tmp_path / "whole").rglob("*.sig"):
        assert path.read_bytes() == (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search([[page(1), page(1)]], tmp_path, index=[page(3)])
    assert capfd.readouterr() == ("", "")
