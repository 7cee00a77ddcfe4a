"""Composition: what Hydra makes of files and choices, read once per choice, and what it refuses, in one line."""

import shlex
import shutil
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import dsv2
from dsv2 import composition
from dsv2.composition import as_text, compose, override, without_shape
from dsv2.config import CONFIG_DIR, ConfigError, class_name, digest, plain
from dsv2.models.moe.dropping import Dropping
from dsv2.models.rope import Rope, Yarn
from dsv2.study.plan import Plan

ROOT = Path(__file__).parents[1]
IDENTITIES = {  # of every preset as it is: another one renames its stored runs
    "tiny": "b2d7072cfcdab5f0",
    "small": "6db550fc23326e13",
    "v2_lite": "9f0c562fb6b1f8d6",
    "v2": "eaf1d9fe6b9da11e",
    "v2_128k": "be4f15e530850e11",
    "v2_lite_32k": "21faba7720133870",
    "deepseek_moe_2b": "86545d5210f2137c",
    "deepseek_moe_16b": "d854f0e0b33f9f3b",
    "deepseek_67b": "1ec23c92fb2710ed",
    "deepseek_7b": "e892bc4b389c9394",
}
VARIANTS = {  # of tiny with another attention or feed-forward network
    "model/attention=mha": "789febd4dee5c61d",
    "model/attention=gqa": "d1a6821a5c859c41",
    "model/attention=mqa": "0146c13c14c4b2b6",
    "model/ffn=dense": "637416e93910ac91",
    "model/ffn=gshard": "3c70c0668a39223c",
    "model/ffn=switch": "e8426c7c6a2a989a",
    "model/ffn=hash": "7791af78490e28cb",
}


def with_hydra(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra_compose("run", overrides=overrides)


def directly(overrides: list[str]) -> dict:
    return without_shape(OmegaConf.to_container(with_hydra(overrides), resolve=True))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def identity(*overrides: str) -> str:
    return digest(plain(dsv2.load(list(overrides)), identity=True, naming=class_name))


# ---- what is composed ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("value", ["texts/a,b/*.txt", "range(1,3)", "choice(1,3)", "glob(*)"])
def test_several_values_are_refused_as_they_were_written(value):
    with pytest.raises(ConfigError) as refused:
        compose(["data=files", f"data.path={value}"])
    quoted = f"'data.path=\"{value}\"'"
    assert (
        str(refused.value) == f"data.path='{value}' is not valid: one value; if the value is text, quote it: {quoted}"
    )
    assert compose(["data=files", quoted[1:-1]])["data"]["path"] == value


def test_an_edited_file_is_read_again(tmp_path, monkeypatch):
    shutil.copytree(CONFIG_DIR, tmp_path / "configs")
    monkeypatch.setattr(composition, "CONFIG_DIR", tmp_path / "configs")
    path = tmp_path / "configs" / "model" / "tiny.yaml"
    assert compose(["model=tiny"])["model"]["num_layers"] == 3
    path.write_text(path.read_text().replace("num_layers: 3", "num_layers: 5"))
    assert compose(["model=tiny"])["model"]["num_layers"] == 5


# ---- presets ---------------------------------------------------------------------------------------------------------


def test_there_are_these_presets_and_no_others():
    assert options("model") == options("recipe") == sorted(IDENTITIES)


@pytest.mark.parametrize("preset", IDENTITIES)
def test_presets_are_what_they_were(preset):
    assert identity(f"model={preset}") == IDENTITIES[preset]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_preset_are_what_they_were(variant):
    assert identity("model=tiny", variant) == VARIANTS[variant]


@pytest.mark.parametrize("preset", IDENTITIES)
def test_a_preset_gives_every_number(preset):
    """Also those that its own attention and feed-forward network do not use: others can be chosen."""
    composed = with_hydra([f"model={preset}"])
    assert set(composed.model.shape) == set(with_hydra(["model=tiny"]).model.shape)
    assert not OmegaConf.missing_keys(composed)


@pytest.mark.parametrize("folder", ["model", "recipe"])
def test_presets_hold_numbers_only(folder):
    """What they share stands once, in a file that cannot be chosen itself."""
    texts = [path.read_text() for path in (CONFIG_DIR / folder).glob("*.yaml")]
    assert len(texts) == len(IDENTITIES)
    assert not any(word in text for text in texts for word in ("_target_", "${", "norm_eps", "precision"))
    assert len(options("presets")) == 2
    for name in options("presets"):
        with pytest.raises(ConfigError, match=f"^{folder}='{name}' is not valid: choose one of "):
            compose([f"{folder}={name}"])
        with pytest.raises(ConfigError, match=f"^presets='{name}' is not valid: unknown key; valid keys are arm"):
            compose([f"presets={name}"])


# ---- groups within groups --------------------------------------------------------------------------------------------


def test_token_dropping_is_chosen_and_its_numbers_are_overridden():
    def dropping(*overrides: str) -> Dropping.Config | None:
        return dsv2.load(list(overrides)).model.ffn.dropping

    assert dropping() is dropping("model/ffn/dropping=none") is None
    assert dropping("model/ffn/dropping=device") == Dropping.Config(capacity_factor=1.0, exempt_ratio=0.1)
    own = ["model.ffn.dropping.capacity_factor=0.5", "model/ffn/dropping=device", "model=v2", "model/ffn=moe"]
    assert dropping(*own) == Dropping.Config(capacity_factor=0.5, exempt_ratio=0.1)
    assert dropping("model/ffn/dropping=device", "model.ffn.dropping=null") is None


def test_yarn_is_chosen_and_its_numbers_are_overridden():
    def rope(*overrides: str) -> Rope.Config:
        return dsv2.load(list(overrides)).model.rope

    assert rope() == rope("model/rope=plain") == Rope.Config(base=10000.0, yarn=None)
    assert rope("model/rope=yarn") == Rope.Config(base=10000.0, yarn=Yarn.Config())
    own = rope("model/rope=yarn", "model.rope.base=500", "model.rope.yarn.factor=8")
    assert own == Rope.Config(base=500.0, yarn=Yarn.Config(factor=8.0))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model/ffn/dropping=devices"], "model/ffn/dropping='devices' is not valid: choose one of device, none"),
        (["model/ffn/dropping=null"], "model/ffn/dropping=None is not valid: choose one of device, none"),
        (["model/rope=alibi"], "model/rope='alibi' is not valid: choose one of interpolation, ntk, plain, yarn"),
        (
            ["model.ffn.dropping.capacity_factor=0.5"],
            "model.ffn.dropping.capacity_factor=0.5 is not valid: model.ffn.dropping is null here and has no keys; "
            "other choices of model/ffn/dropping are device, none",
        ),
        (
            ["model.rope.yarn.factor=8"],
            "model.rope.yarn.factor=8 is not valid: model.rope.yarn is null here and has no keys; "
            "other choices of model/rope are interpolation, ntk, plain, yarn",
        ),
        (["study.name=x"], "study.name='x' is not valid: study is null here and has no keys"),
        (["model/rope=yarn", "model.rope.yarn.factr=8"], "did you mean 'factor'? valid keys are beta_fast,"),
        (
            ["model/ffn/dropping=device", "model/ffn=dense"],
            "model/ffn/dropping='device' is not valid: model/ffn=dense has no such choice",
        ),
        (
            ["model/ffn=gshard", "model/ffn/dropping=device"],
            "model/ffn/dropping='device' is not valid: model/ffn=gshard has no such choice",
        ),
        (["model/atention=mha"], "unknown key; did you mean 'model/attention'? valid keys are benchmarks, data, "),
        (["recipe=null"], "recipe=None is not valid: choose one of deepseek_67b, "),
        (["model=3"], "model=3 is not valid: choose one of deepseek_67b, "),
        (["model=[tiny,small]"], "model=['tiny', 'small'] is not valid: choose one of deepseek_67b, "),
        (["recipe=v2lite"], "recipe='v2lite' is not valid: choose one of deepseek_67b, "),
        (["model=tiny,small"], "model='tiny,small' is not valid: choose one of deepseek_67b, "),
        (
            ["model.attention=mha"],
            "model.attention='mha' is not valid: groups are written with slashes, model/attention=gqa|mha|mla|mqa",
        ),
        (["~recipe", "optim.lrr=1"], "optim.lrr=1 is not valid: unknown key; did you mean 'lr'?"),
    ],
)
def test_a_choice_that_is_not_there_is_one_line(overrides, message):
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_that_people_read_spells_a_class_in_an_override():
    """Classes are named by the YAML of a group; docs/extending.md shows such files, and nothing else does."""
    folders = ("sweep", "scales", "probes", "judged", "budgets")
    studies = [path for folder in folders for path in (CONFIG_DIR / folder).glob("*.yaml")]
    pages = [ROOT / "README.md", ROOT / "LOG.md", *(ROOT / "docs").rglob("*.md")]
    notebooks = [*(ROOT / "notebooks").glob("*.ipynb")]
    assert min(len(studies), len(pages), len(notebooks)) > 8
    for path in (*studies, *pages, *notebooks):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if "_target_" in line and not line.startswith("_target_: dsv2.")], path


# ---- values of any text ----------------------------------------------------------------------------------------------

TEXT = st.text() | st.text(alphabet="\\'\"${}[]ab:, =()~\n\t_1e-数")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT, st.lists, max_leaves=4
)
READ_AS_OTHERS = [
    "64",
    "1e-3",
    "2024",
    "null",
    "true",
    "inf",
    "",
    "a,b",
    "[a]",
    "{a:1}",
    "${seed}",
    "'x'",
    '"x"',
    "a\\",
]


@given(VALUES)
@settings(deadline=None)
def test_an_override_sets_exactly_its_value(value: object) -> None:
    (parsed,) = composition.checked([override("key", value)])
    assert not parsed.is_sweep_override()
    composed = OmegaConf.create({"key": None})
    OmegaConf.update(composed, "key", parsed.value(), merge=True)
    plain_value = OmegaConf.to_container(composed, resolve=True)["key"]
    assert plain_value == value
    assert type(plain_value) is type(value)


@pytest.mark.parametrize("text", [*READ_AS_OTHERS, "~/数据", "/a b/(x)=y/*.txt"])
def test_text_stays_text_on_its_way_into_a_run(text: str) -> None:
    if text:
        assert dsv2.load(["model=tiny", override("study", text), override("arm", text)]).arm == text
    if "$" not in text:
        assert as_text(override("study", text).partition("=")[2]) == text


def test_plain_words_are_not_quoted() -> None:
    assert override("data.path", "/data/a-b.txt") == "data.path=/data/a-b.txt"
    assert override("seed", 3) == "seed=3"


@pytest.mark.parametrize("path", ["/tmp/a(b)", "~x=y", "数据/*.txt", "it's", 'a "b"', "a$b'{"])
def test_what_does_not_parse_is_shown_as_it_would(path: str) -> None:
    with pytest.raises(ConfigError, match="if the value is text, quote it: ") as refused:
        compose([f"data.path={path}:}}"])
    (word,) = shlex.split(refused.value.valid.partition("quote it: ")[2])
    assert compose([word, "data=files"])["data"]["path"] == f"{path}:}}"


def test_a_number_for_text_is_told_how_to_be_text() -> None:
    with pytest.raises(ConfigError, match="quoted, as in 'arm=\"64\"'"):
        dsv2.load(["arm=64"])
    assert dsv2.load(['arm="64"']).arm == "64"
