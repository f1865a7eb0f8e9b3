"""Which version this is: what the checkout says where it runs from one, else what was installed."""

import tomllib
from functools import cache
from importlib.metadata import version

from workbench.paths import PROJECT


@cache
def workbench_version() -> str:
    """The version. An editable install notes one when it is made, which may be older than its checkout."""
    if PROJECT.is_file():
        return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"])
    return version("moe-workbench")
