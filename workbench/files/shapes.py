"""What a JSON value may look like, declared: whole numbers in a range, texts, lists, objects with their keys.

A shape says what is wrong with a value, where and in words; nothing here knows what the value is for
(`manifest_schema.py` does).
"""

import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

LARGEST = 2**63 - 1


class Shape(ABC):
    """What a value may be. `faults` yields what is wrong with one."""

    @abstractmethod
    def faults(self, value: Any, where: str) -> Iterator[str]:
        """What is wrong with the value that stands at this place, in words; nothing where it fits."""


@dataclass(frozen=True)
class Whole(Shape):
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = LARGEST

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"{where} is {shown(value)}; a whole number was expected"
        elif not self.low <= value <= self.high:
            yield f"{where} is {shown(value)}; {self.low} to {self.high} was expected"


@dataclass(frozen=True)
class Number(Shape):
    """A number that is finite, or NaN where it may be missing."""

    or_nan: bool = False

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            yield f"{where} is {shown(value)}; a number was expected"
        elif isinstance(value, float) and not math.isfinite(value) and not (self.or_nan and math.isnan(value)):
            yield f"{where} is {value}; a finite number was expected"


@dataclass(frozen=True)
class Text(Shape):
    """A text, of some length at least; of `of`, where there is a choice."""

    least: int = 0
    of: tuple[str, ...] = ()

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, str) or len(value) < self.least:
            yield f"{where} is {shown(value)}; a text was expected"
        elif self.of and value not in self.of:
            yield f"{where} is {shown(value)}; one of {', '.join(self.of)} was expected"


@dataclass(frozen=True)
class Flag(Shape):
    """True or false."""

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, bool):
            yield f"{where} is {shown(value)}; true or false was expected"


@dataclass(frozen=True)
class Maybe(Shape):
    """A value, or null."""

    of: Shape

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if value is not None:
            yield from self.of.faults(value, where)


@dataclass(frozen=True)
class Rows(Shape):
    """A list of values of one shape."""

    of: Shape
    least: int = 0
    most: int = 10_000_000

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, list):
            yield f"{where} is {shown(value)}; a list was expected"
            return
        if not self.least <= len(value) <= self.most:
            yield f"{where} has {len(value):,} entries; {self.least:,} to {self.most:,} were expected"
            return
        for number, each in enumerate(value):
            yield from self.of.faults(each, f"{where}[{number}]")


@dataclass(frozen=True)
class Named(Shape):
    """An object whose keys are names of anything, and whose values are of one shape."""

    of: Shape | None = None
    least: int = 0

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, dict):
            yield f"{where} is {shown(value)}; an object was expected"
            return
        if len(value) < self.least:
            yield f"{where} is empty; at least {self.least} was expected"
        if self.of is not None:
            for name, each in value.items():
                yield from self.of.faults(each, f"{where}.{name[:80]}")


@dataclass(frozen=True)
class Keys(Shape):
    """An object with keys of its own: those it must have, and those it may have. Others are allowed unless `closed`."""

    must: Mapping[str, Shape]
    may: Mapping[str, Shape] = field(default_factory=dict)
    closed: bool = False

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        if not isinstance(value, dict):
            yield f"{where or 'it'} is {shown(value)}; an object was expected"
            return
        at = f"{where}." if where else ""
        yield from (f"{at}{name} is missing" for name in self.must if name not in value)
        known = {**self.must, **self.may}
        for name, each in value.items():
            if name in known:
                yield from known[name].faults(each, f"{at}{name}")
            elif self.closed:
                yield f"{at}{name[:80]} is unknown; {', '.join(known)} were expected"


@dataclass(frozen=True)
class Either(Shape):
    """A value of one shape or of another, told apart by whether it is an object."""

    an_object: Shape
    other: Shape

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """As of every shape."""
        yield from (self.an_object if isinstance(value, dict) else self.other).faults(value, where)


def shown(value: Any) -> str:
    """A value in a sentence: short, and of a list or an object its kind alone."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def of_dataclass(kind: type, **own: Shape) -> Keys:
    """The shape of a dataclass that was written with `asdict`.

    Args:
        kind: The dataclass. Fields with a default may be missing; other keys may not be there.
        **own: Shapes of fields whose types do not say enough.
    """
    hints = typing.get_type_hints(kind)
    must: dict[str, Shape] = {}
    may: dict[str, Shape] = {}
    for each in fields(kind):
        has_default = each.default is not MISSING or each.default_factory is not MISSING
        (may if has_default else must)[each.name] = own.get(each.name) or _of_annotation(hints[each.name])
    return Keys(must, may, closed=True)


def _of_annotation(annotation: Any) -> Shape:
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (only,) = (each for each in arguments if each is not types.NoneType)
        return Maybe(_of_annotation(only))
    if typing.get_origin(annotation) is tuple:
        return Rows(_of_annotation(arguments[0]))
    if is_dataclass(annotation):
        return of_dataclass(annotation)  # type: ignore[arg-type]  # a class here, never an instance
    plain: dict[Any, Shape] = {bool: Flag(), int: Whole(), float: Number(or_nan=True), str: Text()}
    return plain[annotation]
