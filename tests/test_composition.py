"""`compose` reads the files of a choice of groups once, and nobody can tell."""

import shutil

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from dsv2 import composition
from dsv2.composition import compose, without_shape
from dsv2.config import CONFIG_DIR, ConfigError
from dsv2.study.plan import Plan


def directly(overrides: list[str]) -> dict:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return without_shape(OmegaConf.to_container(hydra_compose("run", overrides=overrides), resolve=True))


@pytest.mark.parametrize("study", ["token_dropping", "rope_dim", "moe_baselines", "attention_moe"])
def test_it_is_what_hydra_composes(study):
    """Mappings, interpolations, groups chosen twice and numbers with underscores, in the words of real studies."""
    plan = Plan(study, "paper")
    for arm in plan.arms:
        words = plan.words(arm)
        assert compose(words) == directly(words), words


def test_one_does_not_change_the_next():
    first = compose(["model=tiny", "model.dim=96"])
    assert compose(["model=tiny"])["model"]["dim"] == 64
    first["model"]["dim"] = 1
    assert compose(["model=tiny", "model.dim=96"])["model"]["dim"] == 96


def test_additions_and_deletions_are_hydras():
    words = ["model=tiny", "~model.norm_eps", "+model.norm_eps=1e-5"]
    assert compose(words) == directly(words)
    with pytest.raises(ConfigError, match="dimm"):
        compose(["model.dimm=3"])


def test_an_edited_file_is_read_again(tmp_path, monkeypatch):
    shutil.copytree(CONFIG_DIR, tmp_path / "configs")
    monkeypatch.setattr(composition, "CONFIG_DIR", tmp_path / "configs")
    path = tmp_path / "configs" / "model" / "tiny.yaml"
    assert compose(["model=tiny"])["model"]["num_layers"] == 3
    path.write_text(path.read_text().replace("num_layers: 3", "num_layers: 5"))
    assert compose(["model=tiny"])["model"]["num_layers"] == 5
