"""Messages on stderr, and text from elsewhere made printable."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk that takes no more

# Control characters, which terminals obey; marks that reverse the order of text; halves of surrogate pairs, which
# stand for bytes of file names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Replace what a terminal would obey or a font cannot show by its escape, as in `\x1b`; keep line breaks, tabs."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextmanager
def unless_full() -> Iterator[None]:
    """Drop what is printed into a file on a full disk: a log may lose lines, what is being computed may not end."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


def complain(message: object) -> None:
    """Print one message on stderr."""
    with unless_full():
        print(printable(str(message)), file=sys.stderr)


def warn(message: object) -> None:
    """Print a warning on stderr."""
    complain(f"warning: {message}")


def described(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": .")
