"""Which cases of a test are asked in every run; the others differ from them in a value, and are of the rest."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def often(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The cases for `pytest.mark.parametrize`, all but some marked `rest`; a tuple is the values of several names."""
    cases = list(cases)
    missing = [each for each in kept if each not in cases]
    assert not missing, f"{missing} are no cases, and would be asked nowhere"
    return [
        case if case in kept else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.rest)
        for case in cases
    ]
