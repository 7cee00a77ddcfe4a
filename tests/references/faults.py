"""What goes wrong with files: cut and changed bytes, and a disk that takes no more."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def halve(path: Path) -> None:
    """Cut a file to half of its bytes."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextmanager
def full_disk(limit: int = 0) -> Iterator[None]:
    """Let no file of this process grow beyond `limit` bytes: a write takes what still fits, the next raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
