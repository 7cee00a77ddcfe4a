"""Verifiers as they stand in files."""

import pytest

from dsv2.data.verification import Answer, Calls, Checks, Verifier, from_json, to_json


@pytest.mark.parametrize(
    "verifier",
    [None, Answer("4"), Checks("assert f(1) == 2"), Calls({"f(1)": "[2, 'a']"}, "f = lambda x: {reply}")],
)
def test_a_verifier_survives_its_file(verifier: Verifier | None) -> None:
    assert from_json(to_json(verifier)) == verifier


def test_calls_need_no_template() -> None:
    assert from_json({"calls": {"f(2)": "4"}}) == Calls({"f(2)": "4"}, "{reply}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "must have one of answer, calls, checks"),
        ("4", "must have one of answer, calls, checks"),
        ({"answer": "4", "checks": "pass"}, "must have one of answer, calls, checks"),
        ({"answer": "4", "template": "{reply}"}, "must have one of answer, calls, checks"),
        ({"answer": 4}, r"verifier\.answer=4: must be a string"),
        ({"checks": ["pass"]}, r"verifier\.checks=\['pass'\]: must be a string"),
        ({"calls": {}}, r"verifier\.calls=\{\}: must map at least one expression to its value"),
        ({"calls": ["f(2)"]}, "must map at least one expression to its value"),
        ({"calls": {"f(2)": "f(3)"}}, r"verifier\.calls\['f\(2\)'\]='f\(3\)': must be a Python literal in a string"),
        ({"calls": {"f(2)": 4}}, "must be a Python literal in a string"),
        ({"calls": {"f(2)": "4"}, "template": "f"}, r"verifier\.template='f': must contain \{reply\}"),
    ],
)
def test_what_is_no_verifier_is_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(values)
