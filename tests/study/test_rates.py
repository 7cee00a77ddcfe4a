"""Learning rates that a study takes from another one: which is the best, where it is written, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import dsv2
from dsv2.config import ConfigError
from dsv2.study import rates
from dsv2.study.plan import Plan
from dsv2.study.rates import Curve, curves_of, families, node_of, read_curve
from dsv2.training.run import Run

TUNED = {  # rate -> loss, by arm of the source
    "mha": {0.0015: 5.2, 0.003: 5.0, 0.006: 5.1},
    "mla": {0.0015: 4.9, 0.003: 4.8, 0.006: 4.7},
}


def curve(**changes: Any) -> Curve:
    values: dict[str, Any] = {
        "of": "mla_lr*",
        "metric": "val/loss",
        "better": "lower",
        "rates": (0.001, 0.002, 0.004),
        "values": ((5.0, 5.2), (4.9, 4.9), (5.1, 4.8)),
    }
    return Curve(**values | changes)


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_the_best_rate_has_the_best_mean() -> None:
    assert curve().means == pytest.approx([5.1, 4.9, 4.95])
    assert (curve().best, curve().at_edge) == (0.002, False)
    assert (curve(better="higher").best, curve(better="higher").at_edge) == (0.001, True)
    assert curve(values=((5.0,), (4.9,), (4.8,))).at_edge


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": (0.001,)}, r"rates=\(0.001,\) is not valid: at least two, ascending"),
        ({"rates": (0.002, 0.001, 0.004)}, "rates=.* is not valid: at least two, ascending"),
        ({"values": ((5.0,), (4.9,))}, "values=.* is not valid: at least one per rate"),
        ({"values": ((5.0,), (4.9,), ())}, "values=.* is not valid: at least one per rate"),
    ],
)
def test_what_is_no_curve_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        curve(**change)


def test_a_curve_survives_yaml() -> None:
    stored = yaml.safe_load(yaml.safe_dump({"mla": node_of(curve())}))
    assert curves_of(stored) == {"mla": curve()}
    with pytest.raises(ConfigError, match=r"^lr_curves\.mla\.rates='fast' is not valid"):
        curves_of({"mla": stored["mla"] | {"rates": "fast"}})


def test_a_curve_is_read_from_trials_that_have_all_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: dict[str, Any] = {
        "a": {"metrics": {"val/loss": 5.0}},
        "b": {"metrics": {"val/loss": 4.0}},
        "c": {"metrics": {}},
    }
    monkeypatch.setattr(rates, "finished", lambda folder: results.get(folder.name))

    def read(*names: str) -> Curve | None:
        return read_curve("x*", {0.1: [tmp_path / "a"], 0.2: [tmp_path / name for name in names]}, "val/loss", "lower")

    found = read("b")
    assert found is not None
    assert found.values == ((5.0,), (4.0,))
    assert read("b", "unfinished") is None
    assert read("c") is None


# ---- arms that differ in the rate alone ------------------------------------------------------------------------------


def runs(**words: list[str]) -> dict[str, Run.Config]:
    return {arm: dsv2.load(overrides) for arm, overrides in words.items()}


def test_families_differ_in_nothing_but_the_rate() -> None:
    configs = runs(
        mla_lr2=["optim.lr_factor=2"],
        mla_lr1=[],
        mla_other=["optim.lr=0.004"],
        mha_lr1=["model/attention=mha"],
        warm=["optim.lr_factor=2", "optim.schedule.warmup_steps=5"],
    )
    none = dict.fromkeys(configs, 0)
    assert families(configs, none) == {"mla_*": {0.003: "mla_lr1", 0.004: "mla_other", 0.006: "mla_lr2"}}
    assert families(configs, none | {"mla_lr2": 1}) == {"mla_*": {0.003: "mla_lr1", 0.004: "mla_other"}}


def test_a_family_is_named_by_what_its_arms_share() -> None:
    named = Plan("init_and_lr", "smoke").families()
    assert set(named) == {f"{kind}_lr_factor*_init_std{std}" for kind in ("mha", "mla") for std in (0.006, 0.02)}
    assert list(named["mha_lr_factor*_init_std0.02"]) == [0.0015, 0.003, 0.006]


# ---- studies that take them ------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The file of a study of two attentions at three rates each."""
    arms = {
        f"{kind}_lr{factor}": {"about": "", "overrides": [f"model/attention={kind}", f"optim.lr_factor={factor}"]}
        for kind in ("mha", "mla")
        for factor in (0.5, 1.0, 2.0)
    }
    node = {
        "question": "Which rate?",
        "prediction": "One of them.",
        "metric": "val/loss",
        "judged": {"val/loss": "lower"},
        "equal": ["tokens"],
        "differs": ["total_params", "active_params", "flops_per_token", "kv_elements_per_token"],
        "seeds": 2,
        "baseline": "mha_lr1.0",
        "arms": arms,
    }
    path = tmp_path / "found.yaml"
    path.write_text(yaml.safe_dump(node))
    return path


@pytest.fixture
def node(source: Path) -> dict[str, Any]:
    """A study of the two attentions whose rates come from it, and of one arm with a rate of its own."""
    node: dict[str, Any] = yaml.safe_load(source.read_text())
    return node | {
        "name": "mine",
        "lr_from": str(source),
        "baseline": "mha",
        "arms": {
            "mha": {"about": "", "lr_of": "mha_lr1.0", "overrides": ["model/attention=mha"]},
            "mla": {"about": "", "lr_of": "mla_lr0.5", "overrides": ["model/attention=mla", "optim.lr_factor=7"]},
            "own": {"about": "", "overrides": ["model/attention=mla", "optim.lr=1e-4"]},
        },
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial of the source has finished, with the losses above."""

    def finished(folder: Path) -> Any:
        plan = Plan(str(folder.parents[3].parent / "found.yaml"), "smoke")
        by_name = {
            plan.trial(arm, seed, None, folder.parent).fingerprint(): run
            for arm, run in plan.configs.items()
            for seed in plan.seeds
        }
        run = by_name[folder.name]
        kind = "mla" if hasattr(run.model.attention, "kv_latent_dim") else "mha"
        return {"metrics": {"val/loss": TUNED[kind][run.optim.highest_lr]}}

    monkeypatch.setattr(rates, "finished", finished)


def test_arms_train_at_the_best_rate_of_their_own(node: dict[str, Any], measured: None) -> None:
    plan = Plan(node, "smoke")
    plan.require_rates()
    assert {arm: run.optim.highest_lr for arm, run in plan.configs.items()} == {"mha": 0.003, "mla": 0.006, "own": 1e-4}
    assert {arm: curve.of for arm, curve in plan.curves.items()} == {"mha": "mha_lr*", "mla": "mla_lr*"}
    assert plan.curves["mla"].at_edge
    assert dsv2.load(plan.words("mla")).optim == plan.configs["mla"].optim
    rest = {arm: dataclasses.replace(run.optim, lr=1.0, lr_factor=1.0) for arm, run in plan.configs.items()}
    assert rest["mha"] == rest["mla"]


def test_what_was_found_stays_in_the_definition(node: dict[str, Any], measured: None, source: Path) -> None:
    """A stored study has its rates, whatever becomes of the other one."""
    stored = yaml.safe_load(yaml.safe_dump(Plan(node, "smoke").node))
    source.unlink()
    again = Plan(stored, "smoke")
    assert again.configs["mla"].optim.highest_lr == 0.006
    assert again.untuned is None
    assert again.node == stored


def test_until_the_other_study_has_finished_nothing_is_trained(
    node: dict[str, Any], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(node, "smoke")
    assert plan.configs["mha"].optim.highest_lr == 0.003  # of the scale
    assert "lr_curves" not in plan.node
    said = (
        rf"^lr_from='{source}' is not valid: a study that has finished at scale smoke; run python -m ablations.run "
        rf"sweep={source} scale=smoke first$"
    )
    with pytest.raises(ConfigError, match=said):
        plan.require_rates()
    one = iter([{"metrics": {"val/loss": 5.0}}])
    monkeypatch.setattr(rates, "finished", lambda _: next(one, None))
    with pytest.raises(ConfigError, match=said):
        Plan(node, "smoke").require_rates()


def test_a_probe_keeps_the_rate_of_its_scale(node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is the best rate for text; `tiny` says which one recall is trained at."""
    found = {arm: node_of(curve(of="x*")) for arm in ("mha", "mla")}
    plan = Plan(node | {"lr_curves": found, "probes": ["recall"]}, "tiny")
    assert plan.run_of("mha").optim.highest_lr == 0.002
    assert plan.run_of("mha", "recall").optim.highest_lr == 3e-3


def changed(node: dict[str, Any], **arm: Any) -> dict[str, Any]:
    return node | {"arms": node["arms"] | {"mla": node["arms"]["mla"] | arm}}


def test_what_cannot_be_taken_is_refused(node: dict[str, Any], measured: None, tmp_path: Path) -> None:
    cases = [
        (changed(node, lr_of="nobody"), r"arms\.mla\.lr_of='nobody' is not valid: an arm of found beside others"),
        (node | {"lr_from": None}, r"arms\.mha\.lr_of='mha_lr1.0' is not valid: null without lr_from"),
        (node | {"lr_from": "nothing"}, r"sweep='nothing' is not valid: choose one of"),
        (
            node | {"arms": {arm: {**spec, "lr_of": None} for arm, spec in node["arms"].items()}},
            "lr_from=.* is not valid: null unless an arm names one of its arms with lr_of",
        ),
        (
            node | {"arms": None, "grid": {"optim.lr_factor": [0.5, 1.0]}, "baseline": "lr_factor1.0"},
            "lr_from=.* is not valid: null for a grid, whose arms have no lr_of",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(ConfigError, match=f"^{message}"):
            Plan(wrong, "smoke")
    (tmp_path / "chained.yaml").write_text(yaml.safe_dump(node))
    with pytest.raises(ConfigError, match=r"^lr_from=.* is not valid: a study that has no lr_from itself"):
        Plan(node | {"lr_from": str(tmp_path / "chained.yaml")}, "smoke")
