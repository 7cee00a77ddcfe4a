"""Study files: what they share, what they may say, and what is refused before anything is planned."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv2.config import CONFIG_DIR, ConfigError, structure
from dsv2.study.files import FOLDERS, SHARED, Arm, Probe, ScaleFile, StudyFile, definition, mapping, names, read
from dsv2.study.plan import Plan

NONE = {"none": {"about": "", "overrides": []}}
LOSS = {"about": "", "overrides": ["loss.expert=0.1"]}
KINDS = {"sweep": StudyFile, "scale": ScaleFile, "probe": Probe}
FILES = [(group, name) for group in FOLDERS for name in names(group)]


def arms_of(node: dict[str, Any]) -> dict[str, Arm]:
    study: StudyFile = structure(node, StudyFile)
    return study.all_arms()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_every_group_has_files():
    assert {"balance_losses", "attention_moe", "aa"} < set(names("sweep"))
    assert names("scale") == ["base", "paper", "small", "smoke", "tiny"]
    assert names("probe") == ["arithmetic", "copying", "needle", "recall"]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_is_what_it_should_be(group, name):
    assert isinstance(structure(read(group, name), KINDS[group]), KINDS[group])


@pytest.mark.parametrize("group", FOLDERS)
def test_a_name_that_is_none_is_refused(group):
    for name in ("chess", "../sweep/aa", "", "aa.yaml"):
        with pytest.raises(ConfigError, match=f"^{group}='{name}' is not valid: choose one of {names(group)[0]}, "):
            read(group, name)


# ---- what files share ------------------------------------------------------------------------------------------------

OWN = """
defaults: [/judged/text, /budgets/all]
question: q
prediction: p
metric: val/loss
seeds: 2
baseline: a
judged: {routing/entropy: higher, val/bpb: higher}
arms: {a: {about: one}, b: {about: two, overrides: ["model.ffn.top_k=${times:model.shape.top_k,2}"]}}
"""


def test_a_file_stands_on_top_of_what_it_names(tmp_path):
    node = mapping(written(tmp_path, OWN), "mine")
    text, budgets = (
        yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text()) for name in ("judged/text", "budgets/all")
    )
    assert "defaults" not in node
    assert (node["data"], node["probes"], node["equal"]) == (text["data"], text["probes"], budgets["equal"])
    assert list(node["judged"]) == [*text["judged"], "routing/entropy"]
    assert node["judged"] == text["judged"] | {"routing/entropy": "higher", "val/bpb": "higher"}
    assert node["arms"]["b"]["overrides"] == ["model.ffn.top_k=${times:model.shape.top_k,2}"]  # for Hydra to resolve
    assert list(arms_of(node)) == ["a", "b"]


def test_lists_are_replaced_and_later_files_win(tmp_path):
    node = mapping(written(tmp_path, f"{OWN}equal: [tokens]\n"), "mine")
    assert node["equal"] == ["tokens"]
    both = OWN.replace("/budgets/all", "/budgets/all, /budgets/parameters")
    assert mapping(written(tmp_path, both), "mine")["equal"] == ["total_params", "tokens"]
    last = OWN.replace("/judged/text", "_self_, /judged/text")
    assert mapping(written(tmp_path, last), "mine")["judged"]["val/bpb"] == "lower"
    assert mapping(written(tmp_path, OWN.replace("all]", "all, _self_]")), "mine") == (
        mapping(written(tmp_path, OWN), "mine")
    )


def test_what_is_shared_is_not_changed_by_who_reads_it(tmp_path):
    mapping(written(tmp_path, OWN), "mine")["judged"].clear()
    assert "val/loss" in read("sweep", "kv_rank")["judged"]


def test_a_study_of_ones_own_shares_what_the_studies_here_share(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((CONFIG_DIR / "sweep" / "kv_rank.yaml").read_text())
    assert mapping(path, "mine") == read("sweep", "kv_rank")
    here, there = Plan("kv_rank", "smoke"), Plan(str(path), "smoke")
    assert [here.words(arm) for arm in here.arms] == [there.words(arm) for arm in there.arms]
    assert [run.fingerprint() for run in here.configs.values()] == [run.fingerprint() for run in there.configs.values()]


def test_a_dictionary_shares_what_a_file_shares(tmp_path):
    node = yaml.safe_load(OWN)
    assert definition(node | {"name": "mine"}) == ("mine", mapping(written(tmp_path, OWN), "mine") | {"name": "mine"})
    with pytest.raises(ConfigError, match=r"defaults='/judged/texts' is not valid: .* in the dictionary"):
        definition(node | {"name": "mine", "defaults": ["/judged/texts"]})


def test_every_shared_file_is_used_by_several_studies():
    used = [yaml.safe_load((CONFIG_DIR / "sweep" / f"{name}.yaml").read_text()) for name in names("sweep")]
    shared = [f"/{folder}/{path.stem}" for folder in SHARED for path in (CONFIG_DIR / folder).glob("*.yaml")]
    assert len(shared) == 3
    for name in shared:
        assert sum(name in node.get("defaults", []) for node in used) > 1, name


@pytest.mark.parametrize(
    ("defaults", "value"),
    [
        ("/judged/text", "'/judged/text'"),
        ("null", "None"),
        ("[{model: tiny}]", r"\[{'model': 'tiny'}\]"),
        ("[{override hydra/launcher: joblib}]", r"\[{'override hydra/launcher': 'joblib'}\]"),
        ("[[/judged/text]]", r"\[\['/judged/text'\]\]"),
        ("[judged/text]", "'judged/text'"),
        ("[/judged/text@hydra]", "'/judged/text@hydra'"),
        ("[/judged/texts]", "'/judged/texts'"),
        ("[/model/tiny]", "'/model/tiny'"),
        ("[/sweep/kv_rank]", "'/sweep/kv_rank'"),
        ("[/judged/../sweep/kv_rank]", "'/judged/../sweep/kv_rank'"),
        ("[../mine]", "'../mine'"),
        ("[mine]", "'mine'"),
        ("[/etc/passwd]", "'/etc/passwd'"),
        ("['file:///etc/passwd']", "'file:///etc/passwd'"),
        ("['optional /judged/text']", "'optional /judged/text'"),
        ("['/judged/${oc.env:HOME}']", r"'/judged/\${oc.env:HOME}'"),
        ("[hydra/config]", "'hydra/config'"),
        ("[_self_, _self_]", "'_self_'"),
        ("[/judged/text, /judged/text]", "'/judged/text'"),
    ],
)
def test_defaults_name_shared_files_and_nothing_else(tmp_path, defaults, value):
    path = written(tmp_path, f"defaults: {defaults}\nquestion: q\n")
    with pytest.raises(ConfigError, match=rf"^defaults={value} is not valid: .*/judged/text.* in {path}$"):
        mapping(path, "mine")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hydra: {searchpath: [file:///tmp]}", "hydra={.*} is not valid: unknown key; .*valid keys are adjust, arms,"),
        ("_target_: os.system", "_target_='os.system' is not valid: only configs of this package"),
        ("default: [/judged/text]", r"default=\['/judged/text'\] is not valid: unknown key; "),
        ("judgd: {val/loss: lower}", "judgd={.*} is not valid: unknown key; did you mean 'judged'"),
    ],
)
def test_keys_that_no_study_has_are_refused(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        arms_of(mapping(written(tmp_path, f"{OWN}{line}\n"), "mine"))


@pytest.mark.parametrize("group", ["scale", "probe"])
def test_only_studies_have_more_than_their_own_keys(group):
    node = read(group, names(group)[0]) | {"defaults": ["/judged/text"]}
    with pytest.raises(ConfigError, match=r"defaults=.* is not valid: unknown key"):
        structure(node, KINDS[group])


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "baseline='nothing' is not valid: one of the arms"),
        ({"metric": "val/accuracy"}, "metric='val/accuracy' is not valid: one of the judged metrics"),
        (
            {"judged": {"val/loss": "lower", "val/beauty": "higher"}},
            "judged=.* is not valid: metrics that runs log; not",
        ),
        ({"seeds": 1}, "seeds=1 is not valid: at least 2: one seed gives no interval"),
        ({"differs": ["tokens"]}, "differs=.* is not valid: none that `equal` names; tokens is in both"),
        ({"grid": {"loss.expert": [0, 1]}}, "arms=.* is not valid: either arms or a grid"),
        ({"equal": ["beauty"]}, "equal=.'beauty',. is not valid: some of total_params"),
        ({"margin": {"x": 1.0}}, "margin=.* is not valid: judged metrics only; not x"),
        ({"arms": {"none": {"about": "", "overrides": []}}}, "arms=.* is not valid: at least two"),
        ({"judged": {"val/loss": "best"}}, "judged=.* is not valid"),
        ({"question": None}, "question=None is not valid"),
        ({"colour": "red"}, "colour='red' is not valid: unknown key"),
        ({"seeds": 1001}, "seeds=1001 is not valid: at most 1000"),
        ({"looks": []}, r"looks=\(\) is not valid: numbers of seeds from 2 to 1000, each more than the one before"),
        ({"looks": [1, 4]}, "looks=.* is not valid: numbers of seeds from 2"),
        ({"looks": [4, 4]}, "looks=.* is not valid: numbers of seeds from 2"),
        ({"looks": [8, 4]}, "looks=.* is not valid: numbers of seeds from 2"),
        ({"looks": [4, 1001]}, "looks=.* is not valid: numbers of seeds from 2"),
        ({"looks": [4.5]}, "looks=.* is not valid: "),
        ({"margin": {"val/loss": -1.0}}, "margin=.* is not valid: positive and finite"),
        ({"margin": {"val/loss": math.nan}}, "margin=.* is not valid: positive and finite"),
        ({"scales": {"smok": ["optim.lr=1"]}}, r"scales=\['smok'\] is not valid: scales, of base, .*smoke"),
        ({"arms": NONE | {"x": None}}, r"arms\.x=None is not valid: a mapping with about and overrides"),
        ({"arms": NONE | {"a/b": LOSS}}, "arms='a/b' is not valid: names of letters, digits"),
        ({"arms": NONE | {"null": LOSS}}, "arms='null' is not valid: another name; on a command line"),
        ({"arms": NONE | {64: LOSS}}, r'^arms=64 is not valid: keys that are text; .* is quoted: "64"$'),
        ({"arms": NONE | {None: LOSS}}, r'^arms=None is not valid: keys that are text; .* is quoted: "null"$'),
        ({"arms": NONE | {"x": LOSS | {7: 1}}}, r"^arms\.x=7 is not valid: keys that are text"),
        ({"scales": {True: ["optim.lr=1"]}}, r'^scales=True is not valid: keys that are text; .* is quoted: "true"$'),
        ({1: 2}, "^key=1 is not valid: keys that are text"),
        ({"arms": NONE | {"x": LOSS | {"scales": {"smok": []}}}}, r"arms\.x\.scales=\['smok'\] is not valid"),
        ({"arms": None, "grid": {"loss.expert": [0, 0]}}, "grid=.* at least one level for each key, all distinct"),
        ({"arms": None, "grid": {"loss.expert": [0]}}, "arms=None is not valid: at least two"),
    ],
)
def test_a_bad_study_is_refused(changes, message):
    node = read("sweep", "balance_losses")
    assert "none" in arms_of(node)
    with pytest.raises(ConfigError, match=message):
        arms_of(node | changes)


@pytest.mark.parametrize("again", ["baseline: expert", "defaults: [/judged/text]", "judged: {val/loss: lower}"])
def test_a_key_stands_once(tmp_path, again):
    path = written(tmp_path, OWN + again + "\n")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: duplicate key {again.partition(':')[0]}"):
        mapping(path, "mine")


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"a: [1", b"- a list", b"", b"!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"^sweep='mine' is not valid: .*mine\.yaml") as caught:
        mapping(path, "mine")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*yours\.yaml"):
        mapping(tmp_path / "yours.yaml", "yours")
