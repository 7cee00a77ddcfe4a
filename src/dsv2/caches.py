"""Folders of the user's caches, for what is made once and shared by all runs: prepared corpora, compiled kernels."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """Return the folder for one kind of things, which may not exist yet; None if DSV2_CACHE=off keeps nothing.

    It lies in DSV2_CACHE, else in dsv2/ of the user's caches. Raises ValueError if DSV2_CACHE begins with ~.
    """
    chosen = os.environ.get("DSV2_CACHE", "")
    if chosen == "off":
        return None
    if chosen.startswith("~"):  # a folder called ~ in the current one
        raise ValueError("the path of a folder, or off; a shell replaces ~ outside of quotes only")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return (Path(chosen) if chosen else caches / "dsv2") / kind
