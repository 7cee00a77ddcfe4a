"""Checkpoints under kills, full disks and changed bytes: which one counts, and what is said of the others."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2.storage import checkpoints
from dsv2.storage.checkpoints import latest, load, name_of, save, step_of, steps
from tests.references.faults import flip, full_disk, halve

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from dsv2.storage import checkpoints
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def half(checkpoint, file):
    file.write(b"half")
    file.flush()
    die()
if sys.argv[2] == "file":
    torch.save = half
else:
    checkpoints.write_json = die
checkpoints.save({"global_step": 8}, Path(sys.argv[1]) / checkpoints.name_of(8))
"""


def state(step: int) -> dict[str, Any]:
    """What Lightning hands over, in small."""
    weights = torch.arange(64, dtype=torch.float32) + step
    return {"global_step": step, "state_dict": {"w": weights}, "callbacks": {"a": {"numbers": [1, (2, None)]}}}


def saved(folder: Path, *of_steps: int) -> list[Path]:
    paths = [folder / name_of(step) for step in of_steps]
    for step, path in zip(of_steps, paths, strict=True):
        save(state(step), path)
    return paths


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def manifest(folder: Path) -> dict[str, Any]:
    listed: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return listed


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    (path,) = saved(tmp_path / "new" / "folder", 4)
    loaded, expected = load(path), state(4)
    assert torch.equal(loaded.pop("state_dict")["w"], expected.pop("state_dict")["w"])
    assert loaded == expected


def test_the_manifest_lists_step_and_checksum_of_the_newest_two(tmp_path: Path) -> None:
    saved(tmp_path, 4, 8, 12, 16)
    kept = [name_of(12), name_of(16)]
    assert names(tmp_path) == ["manifest.json", *kept]
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in kept]
    assert manifest(tmp_path) == {
        kept[0]: {"step": 12, "sha256": digests[0]},
        kept[1]: {"step": 16, "sha256": digests[1]},
    }


@pytest.mark.parametrize(("step", "name"), [(4, "step-000000004.ckpt"), (999_999_999, "step-999999999.ckpt")])
def test_a_name_says_its_step(step: int, name: str) -> None:
    assert name_of(step) == name
    assert step_of(Path("anywhere") / name) == step


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    saved(tmp_path, 4, 8)
    path = tmp_path / name_of(8)
    save(state(8) | {"attempt": 2}, path)
    assert load(latest(tmp_path) or path)["attempt"] == 2
    assert steps(tmp_path) == [4, 8]


def test_checkpoints_past_the_step_that_is_saved_go(tmp_path: Path) -> None:
    """They are of an attempt that could not be resumed; kept, they would displace every checkpoint of the new one."""
    saved(tmp_path, 8, 12, 4)
    assert names(tmp_path) == ["manifest.json", name_of(4)]
    assert latest(tmp_path) == tmp_path / name_of(4)


def test_a_save_on_a_full_disk_fails_and_costs_nothing(tmp_path: Path) -> None:
    old = saved(tmp_path, 4, 8)
    before = [path.read_bytes() for path in old], manifest(tmp_path)
    with pytest.raises((OSError, RuntimeError)), full_disk(512):  # torch turns what the system says into its own error
        save(state(12), tmp_path / name_of(12))
    with pytest.raises((OSError, RuntimeError)), full_disk(512):
        save(state(8), tmp_path / name_of(8))
    assert ([path.read_bytes() for path in old], manifest(tmp_path)) == before
    assert names(tmp_path) == ["manifest.json", *map(name_of, (4, 8))]
    assert latest(tmp_path) == old[1]


def test_a_checkpoint_whose_manifest_could_not_be_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 4, 8)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            save(state(12), tmp_path / name_of(12))
    assert latest(tmp_path) == tmp_path / name_of(8)
    assert steps(tmp_path) == [4, 8]
    saved(tmp_path, 12)
    assert latest(tmp_path) == tmp_path / name_of(12)


@pytest.mark.parametrize("place", ["file", "manifest"])
def test_a_kill_while_saving_costs_that_save_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    saved(tmp_path, 4)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), place], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert latest(tmp_path) == tmp_path / name_of(4)
    assert capsys.readouterr().err == ""  # nothing that was listed is lost
    saved(tmp_path, 12)
    visible = [name for name in names(tmp_path) if not name.startswith(".")]
    assert visible == ["manifest.json", name_of(4), name_of(12)]  # what was never listed is swept


# ---- which one counts ------------------------------------------------------------------------------------------------


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    """Not the one that was touched last, nor a file that nobody listed."""
    _, old, new = saved(tmp_path, 999_999_998, 999_999_999, 1_000_000_000)  # the last name sorts first
    os.utime(new, (0, 0))
    (tmp_path / name_of(3_000_000_000)).write_bytes(old.read_bytes())
    reordered = dict(reversed(manifest(tmp_path).items()))
    (tmp_path / "manifest.json").write_text(json.dumps(reordered))
    assert latest(tmp_path) == new
    assert steps(tmp_path) == [999_999_999, 1_000_000_000]


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"\0")])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any]
) -> None:
    old, new = saved(tmp_path, 4, 8)
    damage(new)
    left = names(tmp_path)
    assert steps(tmp_path) == [4]
    assert capsys.readouterr().err == ""
    assert latest(tmp_path) == old
    message = f"warning: checkpoint {new} is damaged or missing; falling back to an earlier one\n"
    assert capsys.readouterr().err == message
    assert names(tmp_path) == left  # a run may be saving there
    flip(old)
    assert latest(tmp_path) is None
    assert capsys.readouterr().err == message.replace(new.name, old.name)  # the other has been said


def test_a_flipped_bit_of_a_weight_is_what_torch_alone_would_not_see(tmp_path: Path) -> None:
    """Why there is a checksum."""
    (path,) = saved(tmp_path, 4)
    content, number = bytearray(path.read_bytes()), torch.tensor(35.0).numpy().tobytes()
    content[content.index(number)] ^= 1
    path.write_bytes(content)
    assert not torch.equal(load(path)["state_dict"]["w"], state(4)["state_dict"]["w"])
    assert latest(tmp_path) is None


def test_where_nothing_was_saved_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert latest(folder) is None
        assert steps(folder) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    [b"", b'{"step-0', b"[]", b"\xff", b'{"step-000000008.ckpt": 3}', b'{"a": {"sha256": ""}}'],
)
def test_a_damaged_manifest_vouches_for_nothing_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    saved(tmp_path, 4, 8)
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    assert latest(tmp_path) is None
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}: damaged, ")
    assert said.endswith((", so no checkpoint beside it can be trusted\n", ", 1 entries were skipped\n"))
    saved(tmp_path, 12)  # what a run that starts again does
    assert names(tmp_path) == ["manifest.json", name_of(12)]
    assert latest(tmp_path) == tmp_path / name_of(12)


class Code:
    """Unpickled without care, it would run what it names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code out of a checkpoint ran",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / name_of(4)
    save(state(4) | {"extra": Code()}, path)
    with pytest.raises(ValueError, match=r"step-000000004\.ckpt: not a checkpoint of tensors and plain values"):
        load(path)


def test_a_checkpoint_goes_where_it_is_told(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    assert load(path, "meta")["state_dict"]["w"].is_meta
