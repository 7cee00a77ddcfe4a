"""A study's file out of the template: it plans as it stands, and nothing is overwritten."""

from pathlib import Path

import pytest

from dsv2.config import ConfigError
from dsv2.study import new
from dsv2.study.new import new_study
from dsv2.study.plan import Plan


def test_what_is_written_can_be_planned_at_once(tmp_path: Path) -> None:
    path, sweep = new_study("mine", tmp_path / "other.yaml")
    assert sweep == str(path)
    plan = Plan(path, "smoke")
    assert plan.name == "mine"
    assert [(c.arm, c.metric, c.predicted) for c in plan.contrasts] == [
        *[("changed", "routing/max_violation", "better"), ("changed", "val/loss", "equivalent")]
    ]
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"sweep={path} dry_run=true" in line for line in comments)
    assert not {"{", "}"} & set("".join(comments))


def test_it_stands_beside_the_others_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep").mkdir()
    monkeypatch.setattr(new, "CONFIG_DIR", tmp_path)
    assert new_study("mine") == (tmp_path / "sweep" / "mine.yaml", "mine")
    assert "name:" not in (tmp_path / "sweep" / "mine.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("a b", None, "name='a b' is not valid: letters, digits"),
        ("aa", None, "name='aa' is not valid: a new name; there are aa, "),
        ("mine", "x.txt", "--out=.*ends in .yaml or .yml"),
        ("mine", "there.yaml", "--out=.*does not exist yet"),
        ("mine", "none/x.yaml", "--out=.*there is no "),
    ],
)
def test_names_and_paths_that_cannot_be_used(name: str, out: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("kept")
    with pytest.raises(ConfigError, match=message):
        new_study(name, None if out is None else tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
