"""Folders of the user's caches, for what is made once and shared by all runs: prepared corpora, compiled kernels."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """Return the folder for one kind of things, which may not exist yet; None if DSV2_CACHE=off keeps nothing.

    It lies in DSV2_CACHE, else in dsv2/ of the user's caches.
    """
    chosen = os.environ.get("DSV2_CACHE", "")
    if chosen == "off":
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return (Path(chosen) if chosen else caches / "dsv2") / kind
