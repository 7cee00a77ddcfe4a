"""`python -m dsv2 simulate SUBJECT` runs the subject that it names."""

import pytest

from dsv2.__main__ import main
from dsv2.commands.simulate import SUBJECTS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_has_help(subject, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", subject, "--help"])
    assert stopped.value.code == 0
    assert f"simulate {subject}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["memory"]])
def test_no_subject_or_another_one(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
