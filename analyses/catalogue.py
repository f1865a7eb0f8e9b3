"""The analyses there are: found by their files, one analysis a file, its name the file's.

An analysis says what it is asked of in `INPUT`: one `recording`, `two recordings`, a `measurement`, or the `costs` of
two models. Nothing lists them.
"""

import difflib
import inspect
import re
import types
from functools import cache
from importlib import import_module
from pathlib import Path

import analyses
from workbench.errors import AnalysisError

INPUTS = ("recording", "two recordings", "measurement", "costs")
_SHARED = "read"  # what analyses read with; no analysis is there


@cache
def _modules() -> dict[str, str]:
    """Where each analysis is, by its name: in a folder of the field's nouns."""
    files = sorted(Path(analyses.__path__[0]).glob("*/*.py"), key=lambda file: file.stem)
    return {
        file.stem: f"analyses.{file.parent.name}.{file.stem}"
        for file in files
        if not file.stem.startswith("_") and file.parent.name != _SHARED
    }


def names(*inputs: str) -> list[str]:
    """The analyses by name, sorted: those of these inputs, all unless given."""
    return [name for name in _modules() if not inputs or input_of(name) in inputs]


def of_recordings() -> list[str]:
    """The analyses of one recording and of two."""
    return names("recording", "two recordings")


@cache
def input_of(name: str) -> str:
    """What an analysis is asked of, one of `INPUTS`. Read, not imported: a page asks of all.

    Raises:
        AnalysisError: there is no such analysis, or it does not say.
    """
    _known(name)
    file = Path(analyses.__path__[0], *_modules()[name].split(".")[1:]).with_suffix(".py")
    stated = re.search(r'^INPUT = "([\w ]+)"$', file.read_text(encoding="utf-8"), re.M)
    if stated is None or stated[1] not in INPUTS:
        raise AnalysisError(f"{file} states no INPUT; one of {', '.join(map(repr, INPUTS))} was expected.")
    return stated[1]


def get(name: str) -> types.ModuleType:
    """An analysis by name.

    Raises:
        AnalysisError: there is none of that name; says which are spelt alike.
    """
    _known(name)
    return import_module(_modules()[name])


def asks(name: str) -> str:
    """The question of an analysis."""
    return (inspect.getdoc(get(name)) or "").partition("\n\n")[0]


def not_shown(name: str) -> str:
    """What the numbers of an analysis do not show."""
    return (inspect.getdoc(get(name)) or "").partition("\n\n")[2].removeprefix("Not shown:").strip()


def _known(name: str) -> None:
    if name not in _modules():
        raise AnalysisError(f"unknown analysis {name[:80]!r}; {_alike(name)}")


def _alike(name: str) -> str:
    """What may have been meant, as the end of a sentence."""
    near = difflib.get_close_matches(name[:80].lower().replace("-", "_"), _modules(), n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "`workbench analyze RECORDING` without a name lists them."
