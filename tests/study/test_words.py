"""Words from files: what studies say passes, whatever else Hydra understands is refused before it is composed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2.config import ConfigError
from dsv2.study.files import names
from dsv2.study.plan import Plan
from dsv2.study.words import KEYS, require_allowed, require_name

RESOLVERS = ["oc.env", "oc.decode", "oc.select", "oc.create", "oc.dict.keys", "oc.deprecated", "hydra", "now", "timesx"]
QUOTES = ["{}", "'{}'", '"{}"', "[{}]", "{{a: {}}}", "{{a: [1, '{}']}}", "a{}b"]


@pytest.mark.parametrize("study", names("sweep"))
def test_what_studies_say_is_allowed(study):
    plan = Plan(study, "smoke")
    for arm in plan.arms:
        require_allowed(plan.words(arm))


@pytest.mark.parametrize(
    "word",
    [
        "model=tiny",
        "model/attention=mla",
        "model.ffn.num_devices=${.num_experts}",
        "model.dim=${plus:model.shape.num_heads,-1}",
        "optim.lr=${times:optim.lr,1e-3}",
        "+model.norm_eps=1e-5",
        "++trainer.progress=false",
        "data.path='/texts/a b/*.txt'",
        "data.path='/费用 $7/*.txt'",
        "recipe=tiny",
        "model.ffn={num_experts: 4, top_k: ${model.shape.top_k}}",
    ],
)
def test_keys_of_the_config_are_allowed(word):
    require_allowed([word])


@given(
    st.sampled_from(RESOLVERS), st.sampled_from(QUOTES), st.sampled_from(sorted(KEYS)), st.text("abc.:,{}$", max_size=9)
)
def test_no_resolver_is(resolver, quote, key, rest):
    with pytest.raises(ConfigError):
        require_allowed([f"{key}.x={quote.format('${' + resolver + ':A' + rest + '}')}"])


@given(st.from_regex(r"\A(\+\+?|~)?[a-z]\w*([./]\w+)*(@\w+)?=1\Z"))
def test_no_other_key_is(word):
    first = word.lstrip("+~").partition("=")[0].replace("/", ".").partition(".")[0]
    if first in KEYS:
        return
    with pytest.raises(ConfigError):
        require_allowed([word])


@given(st.text(max_size=6))
def test_a_name_is_one_part_of_a_path(name):
    try:
        require_name("study", name)
    except ConfigError:
        return
    assert name.isprintable()
    assert "/" not in name
    assert not name.startswith((".", "-", "+"))
    assert name
