"""Options of the simulators' machine."""

import argparse

import pytest

from dsv2.commands.machine import add_machine, machine_of
from dsv2.config import ConfigError


def parsed(*arguments, efficiency=True):
    parser = argparse.ArgumentParser()
    add_machine(parser, efficiency=efficiency)
    return parser.parse_args(arguments)


def test_the_defaults_are_deepseeks():
    assert machine_of(parsed()).name == "h800"
    assert parsed().context == 4096
    assert machine_of(parsed("--gpu", "a100", efficiency=False)).peak_flops == 312e12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "x"), "gpu='x'"),
        (("--context", "0"), "context=0"),
        (("--sequences", "-1"), "sequences=-1"),
        (("--efficiency", "1.5"), "efficiency=1.5"),
        (("--efficiency", "nan"), "efficiency=nan"),
    ],
)
def test_what_no_machine_has(arguments, message):
    with pytest.raises(ConfigError) as error:
        machine_of(parsed(*arguments))
    assert str(error.value).startswith(message)
