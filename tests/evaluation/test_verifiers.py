"""Verdicts on replies, by ground truth and by programs."""

from collections.abc import Iterator

import pytest

from dsv2.data.verification import Answer, Calls, Checks
from dsv2.evaluation import verifiers
from dsv2.evaluation.sandbox import SandboxBroken
from dsv2.evaluation.verifiers import Judge, Verdict, code_of

DOUBLE = Calls({"f(2)": "4", "f('a')": "'aa'"})
LAMBDA = Calls({"f(2)": "4"}, "f = lambda x: ({reply})")
CHECKED = Checks("assert f(2) == 4\nassert f('a') == 'aa'")
RIGHT = "def f(x):\n    return x * 2"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def score(judge: Judge, reply: str, verifier: Answer | Calls | Checks) -> float | None:
    return judge.verdicts([reply], [verifier])[0].score


def test_ground_truth_is_compared_without_space_around(judge: Judge) -> None:
    for reply, right in ((" a b", 1), ("a b\n", 1), ("a  b", 0), ("a b c", 0), ("", 0)):
        assert score(judge, reply, Answer("a b")) == right


@pytest.mark.parametrize("verifier", [DOUBLE, CHECKED])
def test_programs_that_work_are_right(judge: Judge, verifier: Calls | Checks) -> None:
    assert score(judge, RIGHT, verifier) == 1
    assert score(judge, f"This doubles:\n```python\n{RIGHT}\n```\nDone.", verifier) == 1
    assert score(judge, RIGHT.replace("2", "3"), verifier) == 0


def test_expressions_are_put_in_their_template(judge: Judge) -> None:
    assert [score(judge, reply, LAMBDA) for reply in (" x * 2", "x + x", "x ** 2", "x * 3", "x *", "2 * y")] == [
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    assert score(judge, "x * 2.0", LAMBDA) == 0, "4.0 is not 4"


@pytest.mark.parametrize("verifier", [DOUBLE, CHECKED, Checks("assert answer() == 42"), Calls({"answer()": "42"})])
@pytest.mark.parametrize(
    "reply",
    [
        "raise ValueError",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "class E:\n    __eq__ = lambda *_: True\ndef f(x): return E()\ndef answer(): import os; os._exit(0)",
        "def f(x):\n    import os\n    os._exit(0)\nanswer = f",
        "def f(x): raise SystemExit\nanswer = f",
        "```python\n```",
        "",
    ],
)
def test_pitfall_9_what_ends_early_or_equals_all_is_wrong(judge: Judge, reply: str, verifier: Calls | Checks) -> None:
    assert score(judge, reply, verifier) == 0


EVIL = """
class E:
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = lambda *_: True
    __sub__ = __rsub__ = __abs__ = __getitem__ = lambda self, *_: self
    __len__ = __int__ = __index__ = lambda self: 1
    __hash__ = lambda self: 4
    __iter__ = lambda self: iter([E()])
def f(x): return E()
def g(x): return [{"a": (E(),)}]
"""


@pytest.mark.parametrize(
    "checks",
    [
        "assert f(2) == 4",
        "assert 4 == f(2)",
        "assert abs(f(2) - 4) < 1e-6",
        "assert not f(2) != 4",
        "assert 3 < f(2) < 5",
        "assert 4 in f(2)",
        "assert f(2) in {4: 1}",
        "assert list(f(2)) == [4]",
        "assert g(2) == [{'a': (4,)}]",
        "def check(candidate):\n    assert candidate(2) == 4\ncheck(f)",
        "from collections import Counter\nassert Counter(f(2)) == Counter([4])",
        "assert all(a == b for a, b in zip(f(2), [4]))",
        "_plain_ = lambda x: x\nassert f(2) == 4\nassert False",
    ],
)
def test_what_checks_compare_has_to_be_plain(judge: Judge, checks: str) -> None:
    assert score(judge, EVIL, Checks(checks)) == 0
    assert score(judge, f"{EVIL}\n_plain_ = lambda x: x", Checks(checks)) == 0


def test_plain_values_of_every_kind_can_be_compared(judge: Judge) -> None:
    checks = """
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
assert f(2) == 4 and 3 < f(2) <= 4 and f(2) in (4, 5) and type(f(2)) == int and f(2) is not None
assert [f(x) for x in range(3)] == [0, 2, 4] and {f("a"): {f(1)}} == {"aa": {2}}
assert Counter("aa") == Counter("aa") and deque([1]) == deque([1]) and range(2) == range(2)
assert Decimal(1) == 1 and Fraction(1, 2) == 0.5 and defaultdict(int) == {} and OrderedDict() == {}
"""
    assert score(judge, RIGHT, Checks(checks)) == 1


def test_verdicts_keep_the_order_of_mixed_replies(judge: Judge) -> None:
    replies = ["4", RIGHT, "5", "def f(x): return 0"] * 5
    kinds = [Answer("4"), DOUBLE, Answer("4"), CHECKED] * 5
    assert [verdict.score for verdict in judge.verdicts(replies, kinds)] == [1, 1, 0, 0] * 5
    assert judge.verdicts([], []) == []


def test_a_broken_sandbox_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 10: it says nothing about the reply, and must not enter a mean."""

    def broken(*_: object) -> None:
        raise SandboxBroken("no more processes")

    monkeypatch.setattr(verifiers, "Sandbox", broken)
    with Judge() as judge:
        verdicts = judge.verdicts(["4", RIGHT], [Answer("4"), DOUBLE])
    assert verdicts == [Verdict(1.0), Verdict(None, "no more processes")]


def test_no_sandbox_is_started_for_ground_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "Sandbox", lambda *_: pytest.fail("started"))
    with Judge() as judge:
        assert judge.verdicts(["4"], [Answer("4")]) == [Verdict(1.0)]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (" x\n", "x"),
        ("```\nx\n```", "x"),
        ("a\n```python\nx\ny\n```\n```\nz\n```", "x\ny"),
        ("```python\nx", "```python\nx"),
    ],
)
def test_code_is_the_first_fenced_block_or_all(reply: str, code: str) -> None:
    assert code_of(reply) == code
