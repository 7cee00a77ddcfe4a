"""W&B sweep files: in step with the studies, valid by W&B's own schema, and every trial they name can be trained."""

import itertools

import pytest
import yaml

from ablations import study
from ablations.wandb_sweeps import _Dumper, path_of, studies, sweep_file
from dsv2.composition import compose
from dsv2.train import expanded
from dsv2.training.run import from_plain


@pytest.mark.parametrize("name", studies())
def test_the_files_are_in_step_with_the_studies(name):
    assert path_of(name).read_text() == sweep_file(name), "run python -m ablations.wandb_sweeps"


def test_there_is_a_file_for_every_study_and_no_other():
    assert sorted(path.stem for path in path_of("").parent.glob("*.yaml")) == studies()


@pytest.mark.parametrize("name", studies())
@pytest.mark.filterwarnings("ignore::UserWarning")  # `sweeps` speaks to an older pydantic
def test_the_files_are_valid_by_the_official_schema(name):
    from sweeps.config.schema import sweep_config_jsonschema, validator

    sweep = yaml.safe_load(path_of(name).read_text())
    assert not list(validator.iter_errors(sweep))
    assert not any(mark in key for key in sweep["parameters"] for mark in "/+")
    assert list(validator.iter_errors(sweep | {"method": "guess"}))
    assert "parameters" in sweep_config_jsonschema["required"]


@pytest.mark.parametrize("name", ["balance_losses", "attention_dense", "aa"])
def test_an_agent_trains_exactly_the_studys_trials(name):
    parameters = yaml.safe_load(path_of(name).read_text())["parameters"]
    options = [parameter.get("values", [parameter.get("value")]) for parameter in parameters.values()]
    few = [values[:2] for values in options]
    wanted = {trial.folder.name for trial in study(name).trials}
    made = set()
    for values in itertools.product(*few):
        words = expanded([f"{key}={value}" for key, value in zip(parameters, values, strict=True)])
        made.add(from_plain(compose(words)).fingerprint())
    assert made <= wanted
    assert len(made) == len(list(itertools.product(*few)))


@pytest.mark.parametrize(
    "text", ["64", "1e-3", "1.5e3", "0o17", "0x1f", ".5", "null", "true", "no", "无", "2024-01-01"]
)
def test_names_are_text_in_every_version_of_yaml(text):
    """YAML 1.2 reads other plain words as numbers than PyYAML does; a quoted one is text in both."""
    (line,) = yaml.dump([text], Dumper=_Dumper, allow_unicode=True).splitlines()
    assert yaml.safe_load(line) == [text]
    assert line == f"- '{text}'" or text == "无"
