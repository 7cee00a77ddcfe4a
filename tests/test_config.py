"""The one door to configuration: what it refuses, and what a fingerprint depends on."""

import dataclasses
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator

import pytest

import dsv2
from dsv2.config import (
    MOVED,
    ConfigBase,
    ConfigError,
    class_name,
    former_name,
    plain,
    structure,
    target_name,
)
from dsv2.models.attention import MLA
from dsv2.models.ffn import SwiGLU
from dsv2.training.run import Run, from_plain


@pytest.mark.parametrize(
    ("override", "key", "valid"),
    [
        ("model.atention.num_heads=4", "model.atention.num_heads", "did you mean 'attention'"),
        ("model.attention.num_head=4", "model.attention.num_head", "did you mean 'num_heads'"),
        ("optim.lr=fast", "optim.lr", "a number"),
        ("seed=1.5", "seed", "a whole number"),
        ("seed=-1", "seed", "0 or more"),
        ("model=huge", "model", "choose one of"),
        ("model/attention=flash", "model/attention", "gqa, mha, mla, mqa"),
        ("model.ffn.top_k=33", "model.ffn.top_k", "between 1 and 32"),
        ("model.ffn.num_devices=5", "model.ffn.num_devices", "divisor of num_experts=32"),
        ("model.ffn.max_devices=9", "model.ffn.max_devices", "between 1 and num_devices=8"),
        ("model.attention.rope_dim=7", "model.attention.rope_dim", "even"),
        ("model.num_dense_layers=4", "model.num_dense_layers", "between 0 and num_layers=3"),
        ("optim.schedule.decay_at=[0.9,0.6]", "optim.schedule.decay_at", "ascending shares"),
        ("trainer.tokens=10", "trainer.tokens", "at least one step, 1024 tokens"),
        ("trainer.validate_every=15", "trainer.validate_every", "multiple of trainer.log_every=10"),
        ("model.vocab_size=100", "model.vocab_size", "at least data.vocab_size=2048"),
        ("trainer.precision=fp8", "trainer.precision", "fp32 or bf16"),
        ("model.attention._target_=torch.nn.Linear", "model.attention._target_", "only configs of this package"),
        ("model.attention._target_=os.system", "model.attention._target_", "only configs of this package"),
        ("model.ffn._target_=dsv2.models.moe.layer.MoE", "model.ffn._target_", "only configs of this package"),
        (
            "model.ffn._target_=dsv2.models.attention.mla.MLA.Config",
            "model.ffn._target_",
            "dsv2.models.moe.layer.MoE.Config",
        ),
        ("model.dim", "override", "key=value"),
        ("=x", "override", "key=value"),
        ("@x=1", "override", "key=value"),
        ("/=x", "override", "key=value"),
        (
            "model.ffn=null",
            "model.ffn",
            "a choice of its group, model/ffn=dense|gshard|hash|loss_free|moe|sigmoid|switch|v3",
        ),
        ("model.attention=3", "model.attention", "a choice of its group, model/attention=gqa|mha|mla|mqa"),
        (
            "model.ffn=[1]",
            "model.ffn",
            "model/ffn=dense|gshard|hash|loss_free|moe|sigmoid|switch|v3, or keys of its own",
        ),
        ("model.ffn={a: 1}", "model.ffn.a", "valid keys are dropping, expert_dim"),
        ("model.rope.yarn=3", "model.rope.yarn", "they are factor, original_length"),
        ("trainer.batch=null", "trainer.batch", "keys of its own, as in trainer.batch.size=...; they are size, start"),
        ("logger.wandb=null", "logger.wandb", "keys of its own, as in logger.wandb.mode=...; they are mode, project"),
        ("trainer.progress=3", "trainer.progress", "true or false"),
        ("optim.betas=[0.9]", "optim.betas", "a list of 2 numbers"),
        ("optim.betas=0.9", "optim.betas", "a list of 2 numbers"),
        ("optim.betas={a: 1}", "optim.betas", "a list, as in optim.betas=[0.9,0.95]"),
        ("optim.betas.x=1", "optim.betas.x", "optim.betas is [0.9, 0.95] here and has no keys"),
        ("seed.x=1", "seed.x", "seed is 0 here and has no keys"),
        ("arm=3", "arm", "text or null"),
        ("hydra=3", "hydra", "only its keys"),
        ("+model=small", "model", "written as model=small"),
        ("~model", "model", "choose one of deepseek_67b"),
        ("~model/ffn", "model.ffn", "a value is required, a choice of its group, model/ffn=dense|"),
        ("~seed", "seed", "a value is required, a whole number"),
        ("typo=1", "typo", "valid keys are"),
    ],
)
def test_a_mistake_names_key_value_and_what_is_valid(override, key, valid):
    with pytest.raises(ConfigError) as caught:
        dsv2.load([override])
    assert caught.value.key == key
    assert valid in str(caught.value)
    assert str(caught.value).count("\n") == 0
    value = override.partition("=")[2].replace("null", "None")
    assert "_target_" in override or not value or re.split("[,:]", value.strip("[]{}"))[0] in str(caught.value)


def test_impossible_combinations_are_refused():
    with pytest.raises(ConfigError, match=r"model\.ffn\.top_k=13 .*between 1 and 12, the experts on 3 devices"):
        dsv2.load(["model.ffn.max_devices=3", "model.ffn.top_k=13"])
    with pytest.raises(ConfigError, match=r"model\.attention\.num_kv_heads=3 .*divisor of num_heads=4"):
        dsv2.load(["model/attention=gqa", "model.attention.num_kv_heads=3"])
    with pytest.raises(ConfigError, match=r"model\.attention\.rope_dim=18 .*between 2 and head_dim=16"):
        dsv2.load(["model/attention=mha", "model.attention.rope_dim=18"])


def test_configs_are_frozen():
    run = dsv2.load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 2


def test_attention_swaps_on_the_same_model():
    for kind, heads in (("mha", 4), ("gqa", 2), ("mqa", 1)):
        attention = dsv2.load([f"model/attention={kind}"]).model.attention
        assert (attention.num_heads, attention.num_kv_heads) == (4, heads)
    assert isinstance(dsv2.load(["model/attention=mla"]).model.attention, MLA.Config)
    assert isinstance(dsv2.load(["model/ffn=dense"]).model.ffn, SwiGLU.Config)


def test_a_stored_config_comes_back_equal():
    run = dsv2.load(["model=small", "seed=3"])
    assert from_plain(plain(run)) == run


# ---- fingerprint -----------------------------------------------------------------------------------------------------


def fingerprint(*overrides):
    return dsv2.load(list(overrides)).fingerprint()


def test_same_computation_same_name():
    base = fingerprint()
    assert fingerprint("optim.lr=3e-3", "seed=0") == base  # defaults spelled out
    assert fingerprint("seed=0", "optim.lr=0.003") == base  # another order, another spelling
    assert fingerprint("trainer.progress=false", "trainer.checkpoint_every=10") == base  # how it runs
    assert fingerprint("logger.wandb.mode=disabled", "trainer.accelerator=cpu") == base
    assert fingerprint("study=x", "arm=y") == base


def test_a_field_added_later_counts_unless_it_is_at_its_default():
    model = dsv2.load().model
    assert "embedding_std" not in plain(model, identity=True)
    assert plain(dataclasses.replace(model, embedding_std=1.0), identity=True)["embedding_std"] == 1.0
    assert "embedding_std" in plain(model)


def test_key_order_does_not_matter():
    run = dsv2.load()

    def reversed_keys(node):
        if isinstance(node, dict):
            return {key: reversed_keys(value) for key, value in reversed(node.items())}
        return node

    assert from_plain(reversed_keys(plain(run))).fingerprint() == run.fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optim.lr=0.002",
        "optim.schedule.decay_at=[0.5,0.9]",
        "model.dim=72",
        "model.embedding_std=1",
        "model/attention=mha",
        "loss.expert=0.1",
        "trainer.tokens=102400",
        "trainer.batch.size=4",
        "data.vocab_size=1024",
        "trainer.precision=bf16",
    ],
)
def test_another_computation_another_name(override):
    assert fingerprint(override) != fingerprint()


def test_structure_lists_what_is_missing():
    with pytest.raises(ConfigError, match="num_heads=None is not valid: a value is required"):
        structure({"_target_": "dsv2.models.attention.mla.MLA.Config", "head_dim": 4})


# ---- names of classes ------------------------------------------------------------------------------------------------


def derived(cls: type[ConfigBase]) -> Iterator[type[ConfigBase]]:
    for child in cls.__subclasses__():
        yield child
        yield from derived(child)


@pytest.fixture(scope="module")
def classes() -> list[type[ConfigBase]]:
    """Every config class of the package, all of its modules imported."""
    for module in pkgutil.walk_packages(dsv2.__path__, "dsv2."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return sorted({cls for cls in derived(ConfigBase) if cls.__module__.startswith("dsv2.")}, key=target_name)


def test_no_two_config_classes_share_a_name(classes):
    """A fingerprint knows a class by its qualified name alone."""
    assert Run.Config in classes
    assert MLA.Config in classes
    assert {name: count for name, count in Counter(map(class_name, classes)).items() if count > 1} == {}


def test_every_moved_name_leads_to_a_class(classes):
    now = {target_name(cls): cls for cls in classes}
    for former, name in MOVED.items():
        assert former not in now
        assert class_name(now[name]) == ".".join(former.split(".")[-2:])  # another place, the same name


def test_a_stored_config_is_read_by_its_former_names():
    run = dsv2.load(["seed=3"])
    former = plain(run, naming=former_name)
    assert former["_target_"] == "dsv2.run.Run.Config"
    assert former["trainer"]["_target_"] == "dsv2.training.settings.Training.Config"
    assert from_plain(former) == run


@pytest.mark.parametrize("data", ["files", "synthetic", "synthetic_copying"])
def test_moving_a_class_changes_no_fingerprint(classes, quick, monkeypatch, data):
    """Nor, once `MOVED` says where it went, the one that runs from before November 2026 have."""
    others = [word for word in quick if not word.startswith("data")]
    run = dsv2.load(quick if data == "files" else [*others, f"data={data}"])
    now, former = run.fingerprint(), run.fingerprint(former_name)
    assert now != former
    for cls in classes:
        monkeypatch.setitem(MOVED, former_name(cls), f"dsv2.elsewhere.{class_name(cls)}")
    for cls in classes:
        monkeypatch.setattr(cls, "__module__", "dsv2.elsewhere")
    assert plain(run)["model"]["_target_"] == "dsv2.elsewhere.Transformer.Config"
    assert (run.fingerprint(), run.fingerprint(former_name)) == (now, former)
