"""`python -m ablations.report`: a report is of what was run, and takes nothing else."""

import pytest

from ablations.report import main
from ablations.reporting import paper_table, write
from ablations.trials.record import DEFINITION, RECORD


@pytest.mark.parametrize("word", ["seeds=[0]", "workers=2", "optim.lr=1"])
def test_a_report_is_of_what_was_run_and_takes_nothing_else(word, capsys):
    assert main(["sweep=balance_losses", word]) == 2
    key, _, value = word.partition("=")
    error = capsys.readouterr().err
    assert error.startswith(f"error: {key}={value!r} is not valid: unknown key; ")
    assert error.endswith(
        "valid keys are mixed_kernels, report.formats, scale, sweep: a report covers all complete seeds\n"
    )


def test_a_study_that_was_never_run_has_no_report(capsys, runs):
    assert main(["sweep=balance_losses", "scale=tiny"]) == 2
    assert "sweep='balance_losses' is not valid: a study that has been run; " in capsys.readouterr().err
    assert not runs.exists()


def test_nor_has_a_study_of_ones_own(pair_file, capsys, runs):
    assert main([f"sweep={pair_file}"]) == 2
    assert f"sweep='{pair_file}' is not valid: a study that has been run; " in capsys.readouterr().err
    assert not runs.exists()


def test_one_part_that_fails_leaves_the_others(fill, runs, monkeypatch, capsys):
    """Of several scales, of the files of a table, and of a report and its ladder."""
    for scale in ("smoke", "tiny"):
        fill("kv_rank", scale, seeds=(0, 1, 2))
    monkeypatch.setattr(paper_table, "latex", lambda *_: 1 / 0)
    assert main(["sweep=kv_rank", "--table"]) == 1
    said = capsys.readouterr()
    assert "| ours |" in said.out
    said_last = said.err.splitlines()[-1]
    assert said_last == "warning: paper_table.tex could not be written: ZeroDivisionError: division by zero"
    report = runs / "kv_rank" / "smoke" / "report"
    assert {path.suffix for path in report.glob("paper_table.*")} == {".md", ".html"}

    whole = write.report_study
    monkeypatch.setattr(
        write, "report_study", lambda study, console: 1 / 0 if study.scale == "smoke" else whole(study, console)
    )
    assert main(["sweep=kv_rank", "scale=[smoke,tiny]"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "warning: kv_rank at smoke has no report: ZeroDivisionError: division by zero"
    assert (runs / "kv_rank" / "tiny" / "report" / "report.md").is_file()
    assert (runs / "kv_rank" / "ladder" / "report" / "report.md").is_file()


def test_a_grid_is_reported_by_its_factors(fill, runs):
    fill("balance_grid", "smoke", seeds=(0, 1, 2))
    assert main(["sweep=balance_grid"]) == 0
    report = (runs / "balance_grid" / "smoke" / "report" / "report.md").read_text()
    assert "## Exploratory: main effects and interactions" in report
    assert "expert=0.003 x device=0.05" in report


def test_a_study_from_a_dictionary_is_reported_by_its_name(mine, fill, runs, capsys):
    fill(mine)
    assert main(["sweep=mine"]) == 0
    assert "validation loss, expert - better: -0." in capsys.readouterr().out
    assert mine["question"] in (runs / "mine" / "smoke" / "report" / "report.md").read_text()


def test_tables_are_printed_and_written_in_place_of_the_report(mine, fill, runs, capsys):
    fill(mine)
    assert main(["sweep=mine", "--table"]) == 0
    folder = runs / "mine" / "smoke" / "report"
    assert {path.name for path in folder.iterdir()} == {f"paper_table.{suffix}" for suffix in ("md", "tex", "html")}
    assert capsys.readouterr().out.strip() == (folder / "paper_table.md").read_text().strip()


@pytest.mark.parametrize("name", [RECORD, DEFINITION])
def test_a_damaged_study_ends_in_one_line(small, runs, capsys, name):
    small.remember()
    (small.folder / name).write_text("{")
    assert main(["sweep=pair"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: sweep='pair' is not valid: ")
    assert str(small.folder / name) in error
    assert error.count("\n") == 1


def test_help_names_the_words(capsys):
    assert main(["--help"]) == 0
    assert "--table" in capsys.readouterr().out
