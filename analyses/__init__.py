"""Questions asked of recordings, one per file; each runs in batch and is what the page of its name shows.

A module here has a question as the first line of its docstring, a paragraph that begins "Not shown:", `NEEDS`,
`Settings`, `Result`, `run`, `tables` and `figures`. Adding an analysis is adding such a file: nothing lists them.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """An analysis by its name alone, whatever folder it is in: `from analyses import load_balance`."""
    here = Path(__file__).parent
    if name.isidentifier() and not name.startswith("_") and not (here / name).is_dir():
        for file in here.glob(f"*/{name}.py"):
            if file.parent.name != "read":
                return import_module(f"analyses.{file.parent.name}.{name}")
    raise AttributeError(f"module 'analyses' has no attribute {name!r}")
