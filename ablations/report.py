"""`python -m ablations.report sweep=NAME [scale=...] [--table]`: rebuild a report from what is stored.

Nothing is trained. Of several scales also that of their ladder. `--table` prints the results as the paper prints its
Tables 8 and 9, and writes them as Markdown, LaTeX and HTML, instead.
"""

import sys

from ablations.reporting.ladder import report_ladder
from ablations.reporting.paper_table import write_tables
from ablations.reporting.write import report_study
from ablations.request import parse
from ablations.trials.trials import stored
from dsv2.config import ConfigError
from dsv2.report.terminal import open_console

TABLE = "--table"


def main(arguments: list[str]) -> int:
    """The exit status: 0, or 2 for a mistake in the request."""
    if any(word in ("-h", "--help") for word in arguments):
        print(__doc__)
        return 0
    try:
        words = [word for word in arguments if word != TABLE]
        if others := [word for word in words if word.partition("=")[0] not in ("sweep", "scale")]:
            raise ConfigError("words", " ".join(others), "sweep= and scale= alone: a report is of what was last run")
        request, _ = parse(words)
        studies = [stored(request.sweep, scale) for scale in request.scales]
        for study in studies:
            if not study.folder.is_dir():
                valid = f"a study that has been run; there is nothing in {study.folder}"
                raise ConfigError("sweep", request.sweep, valid)
        console = open_console()
        for study in studies:
            if TABLE in arguments:
                print(write_tables(study))
            else:
                report_study(study, console)
        if len(studies) > 1:
            report_ladder(studies, console)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
