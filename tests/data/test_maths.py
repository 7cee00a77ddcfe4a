import re

from dsv2.data.maths import worksheets


def test_a_pure_function_of_its_arguments() -> None:
    assert list(worksheets(20_000)) == list(worksheets(20_000))
    assert list(worksheets(20_000)) == list(worksheets(40_000))[: len(list(worksheets(20_000)))]
    assert set(worksheets(20_000, seed=1)).isdisjoint(worksheets(20_000))


def test_every_equation_of_numbers_holds() -> None:
    text = "\n".join(worksheets(50_000))
    checked = 0
    for left, right in re.findall(r"^([\d+*/() -]+) = ([\d+*/() -]+)$", text, re.MULTILINE):
        assert abs(eval(left) - eval(right)) < 1e-9, (left, right)
        checked += 1
    assert checked > 200


def test_solutions_solve() -> None:
    text = "\n".join(worksheets(50_000))
    linear = re.findall(r"Solve (\d+)x \+ (\d+) = (-?\d+)\.(?:.*\n)*?Answer: x = (-?\d+)", text)
    assert len(linear) > 20
    assert all(int(a) * int(x) + int(b) == int(c) for a, b, c, x in linear)
