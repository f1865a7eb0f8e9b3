"""Settings of analyses from text: `key=value`, each of its type and in its range."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import AnalysisError

_ANY = (-(2.0**31), 2.0**31)
_SHARE, _COUNT, _DRAWS, _SIZE = (0.0, 1.0), (0, 1_000_000), (1, 100_000), (0, 1_000_000)
_TOKENS, _PLACE, _LARGEST = (1, 1_000_000_000), (0, 65_535), (1, 100_000_000)
BOUNDS: Mapping[str, tuple[float, float]] = {
    "level": (0.01, 0.9999), "seed": (0, 2**32 - 1), "null_quantile": _SHARE,
    **dict.fromkeys(("sink", "local", "copying", "collapsed", "memory_share", "failed"), _SHARE),
    **dict.fromkeys(("small", "large"), (0.0, 1_000_000.0)),
    **dict.fromkeys(("n_draws", "n_permutations", "n_seeds"), _DRAWS),
    "n_resamples": (2, 100_000),
    **dict.fromkeys(("n_pairs", "n_tokens", "n_contexts", "window"), (1, 1_000_000)),
    "min_count": _COUNT,
    **dict.fromkeys(("sample_tokens", "batch_tokens", "group_tokens"), _TOKENS),
    **dict.fromkeys(("layer", "head", "expert"), _PLACE),
    **dict.fromkeys(("first", "last"), (0, 1_000_000_000)),
    **dict.fromkeys(("batch", "prompt_tokens", "output_tokens"), _SIZE),
    **dict.fromkeys(("largest", "most", "largest_batch", "largest_context", "context"), _LARGEST),
}  # fmt: skip
"""The least and the most of every numeric setting, by its name, which means the same in every analysis."""
_TRUTHS = {"true": True, "false": False}
_TYPES = {int: "int (a whole number)", float: "float (a number)"}


def parse_settings(module: types.ModuleType, pairs: Sequence[str]) -> Any:
    """An analysis' settings from `key=value` texts.

    Raises:
        AnalysisError: a text without `=`, an unknown key (lists the known ones), or a value of another type.
    """
    name = module.__name__.rpartition(".")[2]
    types_of = typing.get_type_hints(module.Settings)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise AnalysisError(f"{name}: --set {pair[:80]!r} has no '='; key=value was expected.")
        if key not in types_of:
            raise AnalysisError(f"{name}: unknown setting {key[:80]!r}; there are {', '.join(types_of)}.")
        kinds = [kind for kind in typing.get_args(types_of[key]) or (types_of[key],) if kind is not types.NoneType]
        values[key] = _value(f"{name}: {key}", text, kinds[0], BOUNDS.get(key, _ANY))
    return module.Settings(**values)


def _value(what: str, text: str, kind: type, bounds: tuple[float, float]) -> Any:
    """A setting's value from its text.

    Raises:
        AnalysisError: it is of another type, or out of its range.
    """
    if kind is str:
        return text
    shown = text if len(text) <= 60 else f"{text[:57]}…"
    if kind is bool:
        if text.lower() not in _TRUTHS:
            raise AnalysisError(f"{what} is {shown!r}; true or false was expected.")
        return _TRUTHS[text.lower()]
    try:
        value = kind(text)
    except (ValueError, OverflowError) as error:
        words = _TYPES.get(kind, kind.__name__)
        raise AnalysisError(f"{what} is {shown!r}; a value of type {words} was expected.") from error
    low, high = bounds
    if not low <= value <= high:  # NaN neither
        raise AnalysisError(f"{what} is {shown}; {_written(low)} to {_written(high)} was expected.")
    return value


def _written(bound: float) -> str:
    """A bound as people write it: 100,000,000 and 0.5."""
    return f"{bound:,.0f}" if float(bound).is_integer() else f"{bound:g}"
