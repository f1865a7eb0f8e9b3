"""Questions asked of recordings, one per file; each runs in batch and is what the page of its name shows.

An analysis is a file in a folder of its subject (`CONTRIBUTING.md` says what it holds), and `from analyses import NAME`
finds it. Nothing lists them.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """An analysis by its name, wherever its file lies."""
    catalogue = import_module("analyses.catalogue")  # `from analyses import` would ask here for it
    if name in catalogue.names():
        return catalogue.get(name)
    raise AttributeError(f"module 'analyses' has no attribute {name!r}")
