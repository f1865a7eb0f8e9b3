"""Packages that come with an extra (`pip install 'moe-workbench[models]'`), and the sentence where one is missing.

Recordings are read, analysed and printed without any of them. The table here says what `pyproject.toml` says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from workbench.errors import MissingExtra

EXTRA_OF = {
    "torch": "models",
    "transformers": "models",
    "tokenizers": "models",
    "nnsight": "models",
    "accelerate": "models",
    "safetensors": "models",
    "huggingface_hub": "models",
    "streamlit": "app",
    "starlette": "app",
    "guidellm": "serve",
    "authlib": "login",
}
"""The extra that brings a package, by the name under which it is imported."""


def require(package: str, *, needed_for: str) -> None:
    """Refuses where a package of an extra is not installed; nothing is imported.

    Args:
        package: The name under which it is imported.
        needed_for: What needs it, the beginning of the sentence.

    Raises:
        MissingExtra: it is not installed; with the command that installs it.
    """
    if find_spec(package) is None:
        raise MissingExtra(_sentence(package, needed_for))


def missing(error: BaseException, needed_for: str = "this") -> MissingExtra | None:
    """What to say of a failed import; None where it is not for want of an extra's package."""
    if isinstance(error, MissingExtra):
        return error
    # Its exact name: a module that is missing inside a package (`torch.x`) is of another version, or broken.
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        return MissingExtra(_sentence(error.name, needed_for))
    return None


@contextmanager
def extra_named(needed_for: str) -> Iterator[None]:
    """Around an import of what needs an extra.

    Args:
        needed_for: What needs it, the beginning of the sentence.

    Raises:
        MissingExtra: its package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (of_an_extra := missing(error, needed_for)) is None:
            raise
        raise of_an_extra from error


def _sentence(package: str, needed_for: str) -> str:
    return f"{needed_for} needs {package}, which is not installed: pip install 'moe-workbench[{EXTRA_OF[package]}]'."
