"""`python -m ablations.report sweep=NAME [scale=...] [--table]`: rebuild a report from stored results.

Nothing is trained. With several scales, the report of their ladder is written too. With `--table`, the results are
instead printed in the layout of the paper's Tables 8 and 9 and written as Markdown, LaTeX and HTML.
"""

import sys

from ablations.request import parse
from dsv2.config import ConfigError
from dsv2.printing import complain
from dsv2.report.terminal import say

TABLE = "--table"


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status, 2 for an invalid request."""
    if any(word in ("-h", "--help") for word in arguments):
        print(__doc__)
        return 0
    try:
        _report([word for word in arguments if word != TABLE], table=TABLE in arguments)
    except (ConfigError, OSError) as error:
        complain(f"error: {error}")
        return 2
    return 0


def _report(words: list[str], *, table: bool) -> None:
    if others := [word for word in words if word.partition("=")[0] not in ("sweep", "scale")]:
        raise ConfigError(
            "words",
            " ".join(others),
            "only sweep= and scale=: a report covers all complete seeds",
        )
    request, _ = parse(words)
    from ablations.trials.trials import stored

    studies = [stored(request.sweep, scale) for scale in request.scales]
    for study in studies:
        if not study.folder.is_dir():
            valid = f"a study that has been run; {study.folder} does not exist, run {study.command} first"
            raise ConfigError("sweep", request.sweep, valid)
    from ablations.reporting.ladder import report_ladder
    from ablations.reporting.paper_table import write_tables
    from ablations.reporting.write import report_study
    from dsv2.report.terminal import open_console

    console = open_console()
    for study in studies:
        if table:
            say(write_tables(study))
        else:
            report_study(study, console)
    if len(studies) > 1:
        report_ladder(studies, console)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
