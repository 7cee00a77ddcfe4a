"""`python -m ablations.report sweep=NAME [scale=...] [--table]`: rebuild a report from stored results.

Nothing is trained. `report.formats=[png,svg,pdf]` writes figures as SVG and PDF, too. With several scales, the report
of their ladder is written too. With `--table`, the results are instead printed in the layout of the paper's Tables 8
and 9 and written as Markdown, LaTeX and HTML.
"""

import sys
from collections.abc import Callable
from functools import partial

from ablations.request import parse, usage
from dsv2.config import ConfigError, one_of
from dsv2.printing import described, refuse, warn
from dsv2.report.terminal import say

TABLE = "--table"
KEYS = ("sweep", "scale", "mixed_kernels", "report.formats")


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status: 2 for an invalid request, 1 if a part could not be written.

    The other parts are written.
    """
    if any(word in ("-h", "--help") for word in arguments):
        print(usage(__doc__))
        return 0
    try:
        failed = _report([word for word in arguments if word != TABLE], table=TABLE in arguments)
    except (ConfigError, OSError) as error:
        return refuse(error)
    for problem in failed:
        warn(problem)
    return 1 if failed else 0


def _report(words: list[str], *, table: bool) -> list[str]:
    """Write all parts; return a sentence about each that failed."""
    request, others = parse(words, KEYS)
    if others:
        key, _, value = others[0].partition("=")
        raise ConfigError(key, value, f"{one_of(key, KEYS)}: a report covers all complete seeds")
    from ablations.trials.trials import Study, stored

    studies = [stored(request.sweep, scale) for scale in request.scales]
    for study in studies:
        study.mixed_kernels, study.formats = request.mixed_kernels, request.report.formats
        if not study.folder.is_dir():
            valid = f"a study that has been run; {study.folder} does not exist, run {study.command} first"
            raise ConfigError("sweep", request.sweep, valid)
    from ablations.reporting.ladder import report_ladder
    from ablations.reporting.paper_table import write_tables
    from ablations.reporting.write import report_study
    from dsv2.report.terminal import open_console

    console, failed = open_console(), list[str]()

    def attempt(part: str, write: Callable[[], None]) -> None:
        try:
            write()
        except (ConfigError, OSError):
            raise
        except Exception as error:  # of any library; the other parts do not depend on it
            failed.append(f"{part}: {described(error)}")

    def print_table(study: Study) -> None:
        text, problems = write_tables(study)
        say(text)
        failed.extend(problems)

    for study in studies:
        at = f"{study.name} at {study.scale}"
        if table:
            attempt(f"{at} has no table", partial(print_table, study))
        else:
            attempt(f"{at} has no report", partial(report_study, study, console))
    if len(studies) > 1:
        attempt(f"{studies[0].name} has no ladder", partial(report_ladder, studies, console))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
