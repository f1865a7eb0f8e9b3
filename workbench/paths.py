"""Where things lie: what came with the workbench, and the data folder of who uses it.

Bundled models, corpora, configs, programmes and the pages of the app come from the installed package; a checkout has
them beside it. What users record never goes there: it goes to `--data`, to `WORKBENCH_DATA`, or to `data` in the
working directory.
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_HOME = _PACKAGE if (_PACKAGE / "data").is_dir() else _PACKAGE.parent

BUNDLED = _HOME / "data"
"""Models, corpora, configs, programmes and reference figures. Read only."""
PAGES = _HOME / "pages"
"""The scripts of the app."""
PROJECT = _HOME / "pyproject.toml"
"""Of the checkout that this runs from; where a wheel was installed there is none."""


def data_folder() -> Path:
    """The user's: `WORKBENCH_DATA` where it is set, else `data` in the working directory."""
    return Path(os.environ.get("WORKBENCH_DATA") or "data")


def data_folder_option() -> str:
    """Where the data folder was named, for a sentence that asks for another one."""
    return "WORKBENCH_DATA" if os.environ.get("WORKBENCH_DATA") else "working directory, or set WORKBENCH_DATA"
