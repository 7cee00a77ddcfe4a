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


def warn_once(message: object) -> None:
    """Print a warning unless this process has: of what is stored, which is read in several places."""
    if (text := str(message)) not in warned:
        warned.add(text)
        warn(text)


warned: set[str] = set()  # by `warn_once`

MOST = 1200  # characters in the line of an error


def refuse(error: Exception) -> int:
    """Print an error in one line on stderr; return the exit status.

    It is 2 for what another request avoids, such as a path that cannot be used, and 1 for a fault of the machine, such
    as a full disk.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        text = error.strerror if error.filename is None else f"{shortened(str(error.filename))}: {error.strerror}"
    complain(f"error: {shortened(text, MOST)}".replace("\n", " "))
    return 1 if isinstance(error, OSError) and error.errno not in _PATHS else 2


_PATHS = {  # errors of a path that was named, not of the disk that it is on
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENXIO,
}


def shortened(text: str, most: int = 200) -> str:
    """Return `text`, with an ellipsis for its middle if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 43]}...{text[-40:]}"


def described(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": .")
