"""The matrix as text."""

from dsv2.report.lead import Cell, Column, Matrix, Row


def test_contrasts_have_their_mark_in_brackets() -> None:
    cells = [
        Cell("1.0", "± 0.1"),
        Cell("-0.2", "[-0.3, -0.1]", "better", True),
        Cell("+0.1", "", "maybe-worse"),
        Cell(),
    ]
    matrix = Matrix(
        [Column("loss", "nats, lower is better"), *[Column(name) for name in "abc"]], [Row("x", "", cells)], ""
    )
    head, row = matrix.plain()
    assert head == ["arm", "loss (nats, lower is better)", "a", "b", "c"]
    assert row == ["x", "1.0 ± 0.1", "[▲] -0.2 [-0.3, -0.1]", "▽ +0.1", ""]
