"""A thousand flipped bits, over every file of a finished run: each is detected or harmless."""

import random
from pathlib import Path

import pytest
import torch

from dsv2.printing import warned
from dsv2.storage.rundir import read_result
from dsv2.training.saved import open_run

FLIPS = 1000


def flipped(whole: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :]


def weights(run: Path) -> dict[str, torch.Tensor] | None:
    """What would be generated from; None where that is refused."""
    try:
        return open_run(run).model.state_dict()
    except ValueError:
        return None


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(state[name], tensor) for name, tensor in other.items())


@pytest.mark.slow
def test_no_flipped_bit_changes_a_number_in_silence(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for path in trained.rglob("*") if path.is_file() and path.name != "lock"]
    covered = {"config.yaml", "data.json", "tokenizer.json", "metrics.jsonl", "routing.parquet", "result.json"}
    assert covered | {"routing_snapshots.parquet", "manifest.json"} <= {path.name for path in files}
    result, opened = read_result(trained), open_run(trained)
    saved = [opened.model_at(step).state_dict() for step in opened.steps]
    chance, detected, tries = random.Random(0), 0, -(-FLIPS // len(files))
    for path in files:
        whole = path.read_bytes()
        for _ in range(tries):
            path.write_bytes(flipped(whole, chance))
            warned.clear()
            now = read_result(trained)
            assert now == result or now["status"] == "damaged", path
            state = weights(trained) if path.parent.name == "checkpoints" else saved[-1]
            assert state is None or any(same(state, other) for other in saved), path
            detected += bool(capsys.readouterr().err)  # a warning names the file
        path.write_bytes(whole)
    assert detected > 0.8 * tries * len(files)  # the older checkpoint is not read, so that its flips go unseen
    assert read_result(trained) == result
