"""Colours, sizes, and how numbers, ticks and odd characters are written: what the two renderers must agree on.

Nothing here draws, and nothing imports a plotting library. Both renderers ask `ColourScale` for positions in [0, 1], so
that a cell has the same colour in the browser and in the paper.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

WIDTHS_IN = {"column": 3.25, "text": 6.75}
Width = Literal["column", "text"]
FEW_POINTS = 12  # up to here lines have markers and error bars, from there on bands

# Okabe & Ito (2008), neighbours kept apart; black is kept for nulls, yellow comes last because it is faint as a line.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# ColorBrewer's YlGnBu, cut into steps of equal CIELAB distance (lightness falls by about 9 a step): as uniform as
# viridis, and it begins at the paper's white, so that a page of small values is not a page of yellow.
SEQUENTIAL = (
    *("#ffffd9", "#eaf7b1", "#b9e4b5", "#83cebb", "#4cbac2", "#2b9fc2"),
    *("#1e83ba", "#2165ab", "#24479d", "#1d2e83", "#081d58"),
)
# ColorBrewer's RdBu, blue to red: safe for the common colour deficiencies.
DIVERGING = (
    *("#053061", "#2065ab", "#4393c3", "#90c4dd", "#d1e5f0", "#f7f6f6"),
    *("#fddbc7", "#f3a481", "#d6604d", "#b1182b", "#67001f"),
)


@dataclass(frozen=True)
class Ink:
    """Colours of everything that is not data.

    Attributes:
        text: Text, axes, nulls and intervals of bars.
        faint: Grid and frames.
        missing: Cells and tokens without a value.
    """

    text: str
    faint: str
    missing: str


LIGHT = Ink(text="#1a1a1a", faint="#d9d9d9", missing="#d0d0d0")
DARK = Ink(text="#e8e8e8", faint="#4a4a4a", missing="#5a5a5a")


def category_colours(categories: Sequence[Hashable]) -> dict[Hashable, str]:
    """A colour for each category: the palette, then lighter, darker and pale turns of it, then over again.

    A whole number takes the colour of its own place, so that expert 5 looks the same in every figure.
    """
    turns = [CATEGORIES, *(tuple(mixed(c, other, share) for c in CATEGORIES) for other, share in _TURNS)]
    ring = [colour for turn in turns for colour in turn]
    places = [int(str(c)) if _is_whole(c) else index for index, c in enumerate(categories)]
    return {category: ring[place % len(ring)] for category, place in zip(categories, places, strict=True)}


_TURNS = (("#ffffff", 0.5), ("#000000", 0.4), ("#ffffff", 0.75))


def needs_numbers(categories: Iterable[object]) -> bool:
    """Whether colour alone cannot tell these categories apart, and they are numbers that can be written beside."""
    known = list(categories)
    return len(known) > len(CATEGORIES) and all(map(_is_whole, known))


def _is_whole(category: object) -> bool:
    """Whether a category is the number of something, also where it comes as text."""
    return bool(re.fullmatch("[0-9]+", str(category)))


def subscript(value: object) -> str:
    """A whole number, written low."""
    return str(value).translate(str.maketrans("-0123456789", "₋₀₁₂₃₄₅₆₇₈₉"))


def mixed(colour: str, other: str, share: float) -> str:
    """`colour` with `share` of `other` in it, both as #rrggbb."""
    pairs = zip(_rgb(colour), _rgb(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def text_on(background: str) -> str:
    """Black or white, whichever has more contrast on the background (relative luminance of WCAG 2)."""
    channels = [c / 255 for c in _rgb(background)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # both contrasts are equal at 0.179


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


_NOTHING = 1e-300  # below it floats lose their digits, and powers of ten become zero


@dataclass(frozen=True)
class ColourScale:
    """How values become colours.

    A diverging scale reaches equally far to both sides of its centre: as a factor on a log scale, else as a distance.
    Its reach leaves out the most extreme hundredth, so that one dead expert does not bleach the rest; the colour bar
    then ends in an arrow. On a log scale it goes not much farther than what lies over the centre, or nine in ten of
    all, since a rate falls to a hundredth of another more easily than it rises to a hundredfold.

    Attributes:
        low: Value at position 0.
        high: Value at position 1.
        log: Whether positions are logarithmic.
        diverging: Whether the palette diverges around the middle.
        ticks: Values to label.
        below: Whether a value lies under `low`.
        above: Whether a value lies over `high`.
    """

    low: float
    high: float
    log: bool
    diverging: bool
    ticks: tuple[float, ...]
    below: bool
    above: bool

    @classmethod
    def of(cls, values: np.ndarray, *, center: float | None, log: bool) -> "ColourScale":
        """The scale of these values; NaN is left out, and zeros on a log scale lie under its low end."""
        finite = values[np.isfinite(values)]
        inside = finite[finite > 0] if log else finite
        if inside.size == 0:
            inside = np.array([1.0])
        if center is not None:
            ticks = _around(inside, center=center, log=log)
            low, high = ticks[0], ticks[-1]
        else:
            low, high = float(inside.min()), float(inside.max())
            if high - low <= max(1e-9 * max(abs(low), abs(high)), _NOTHING):  # all values are one
                pad = 0.1 * abs(low) if abs(low) > _NOTHING else 0.1
                low, high = (low / 1.1, high * 1.1) if log else (low - pad, high + pad)
            ticks = _log_ticks(low, high) if log else linear_ticks(low, high)
        slack = 1e-9 * (high - low)
        return cls(
            low=low,
            high=high,
            log=log,
            diverging=center is not None,
            ticks=tuple(ticks),
            below=bool((finite < low - slack).any()),
            above=bool((finite > high + slack).any()),
        )

    def positions(self, values: npt.ArrayLike) -> np.ndarray:
        """Positions in [0, 1]; what lies outside is at the nearer end, NaN stays NaN."""
        place, low, high = np.asarray(values, dtype=float), self.low, self.high
        if self.log:
            low, high = math.log(low), math.log(high)
            place = np.log(np.maximum(place, self.low))  # np.maximum keeps NaN
        return np.clip((place - low) / (high - low), 0.0, 1.0)

    def palette(self, *, dark: bool = False) -> tuple[str, ...]:
        """Anchor colours at equal steps. A sequential one leads away from the page: more is more ink, or more light."""
        if self.diverging:
            return DIVERGING
        return SEQUENTIAL[::-1] if dark else SEQUENTIAL

    def colours(self, values: np.ndarray, *, dark: bool = False) -> list[str]:
        """One #rrggbb for each value."""
        palette, missing = self.palette(dark=dark), (DARK if dark else LIGHT).missing
        return [_between(palette, p) if math.isfinite(p) else missing for p in self.positions(values).tolist()]

    @property
    def extend(self) -> Literal["neither", "min", "max", "both"]:
        """At which ends of the colour bar values lie beyond it."""
        if self.below:
            return "both" if self.above else "min"
        return "max" if self.above else "neither"

    @property
    def tick_labels(self) -> list[str]:
        """The ticks, as text, with as many digits as tell neighbours apart (0.99, 0.9925, 0.995)."""
        gap = min((abs(b - a) for a, b in itertools.pairwise(self.ticks)), default=math.inf)
        fine = next((d for d in range(3, 7) if all(_lost(t, d) <= gap / 100 for t in self.ticks)), 7)
        return [number(tick, digits=fine) for tick in self.ticks]


def _lost(value: float, digits: int) -> float:
    """What rounding to significant digits changes."""
    return abs(float(f"{value:.{digits - 1}e}") - value)


def _between(palette: Sequence[str], position: float) -> str:
    index = min(int(position * (len(palette) - 1)), len(palette) - 2)
    return mixed(palette[index], palette[index + 1], position * (len(palette) - 1) - index)


def _around(values: np.ndarray, *, center: float, log: bool) -> list[float]:
    """Ticks of a diverging scale, from its low end to its high end."""
    signed = np.log(values / center) if log else values - center
    distance, many = np.abs(signed), signed.size >= 100
    wanted = float(np.quantile(distance, 0.99 if many else 1.0))
    if log:
        above = signed[signed > 0] if many else distance
        near = max(float(np.quantile(above, 0.99)) if above.size else 0.0, float(np.quantile(distance, 0.9)))
        wanted = min(wanted, _NOT_MUCH_FARTHER * near)
        factors = next((f for f in _FACTORS if math.log(f[-1]) >= wanted), _FACTORS[-1])
        return [center * factor for factor in factors]
    unit = 10 ** math.floor(math.log10(wanted)) if wanted > _NOTHING else abs(center) * 0.1 or 1.0
    rounded = (step * unit for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * unit >= wanted * (1 - 1e-9))
    reach = next(rounded, wanted)  # below 1e-307 a power of ten is not exact, and none may do
    return [center + reach * share for share in (-1.0, -0.5, 0.0, 0.5, 1.0)]


_NOT_MUCH_FARTHER = 1.4
_FACTORS = (
    (0.8, 0.9, 1.0, 1.1, 1.25),
    (0.5, 0.75, 1.0, 1.5, 2.0),
    (0.4, 0.6, 1.0, 1.5, 2.5),
    (0.25, 0.5, 1.0, 2.0, 4.0),
    (0.2, 0.5, 1.0, 2.0, 5.0),
    (0.1, 0.3, 1.0, 3.0, 10.0),
    (0.01, 0.1, 1.0, 10.0, 100.0),
)


def linear_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round values in [low, high], at most `most` of them."""
    unit = 10 ** math.floor(math.log10(high - low))
    for step in (s * unit for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [k * step for k in range(first, last + 1)]
    return []


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors if low * (1 - 1e-9) <= f * 10.0**d <= high * (1 + 1e-9)]
        if len(ticks) <= 6:
            break
    ticks = ticks[:: max(1, math.ceil(len(ticks) / 6))]
    return ticks if len(ticks) > 1 else [low, high]


def tick_indices(labels: Sequence[object], *, fits: int) -> list[int]:
    """Which of the positions of an axis get a label, so that at most about `fits` do.

    Whole numbers are labelled at multiples of a round step (experts 0, 8, 16 …); anything else at every n-th.
    """
    fits = max(fits, 1)
    if len(labels) <= fits:
        return list(range(len(labels)))
    whole = [int(label) for label in labels if isinstance(label, int | np.integer)]
    if len(whole) == len(labels):
        for step in (2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1000, 1024, 2000, 5000, 10_000):
            at = [index for index, label in enumerate(whole) if label % step == 0]
            if 1 < len(at) <= fits:
                return at
    return list(range(0, len(labels), math.ceil(len(labels) / fits)))


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, *, digits: int = 3) -> str:
    """A number for reading: `digits` significant digits, thousands apart, powers of ten outside [0.001, 1,000,000)."""
    if not math.isfinite(value):
        return "no value" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
        return power if mantissa == "1" else f"{mantissa}×{power}".replace("-", "−")
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}"
    return text.rstrip("0").rstrip(".").replace("-", "−")


_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def printable(text: object) -> str:
    """Text with everything invisible made visible.

    Line breaks become ↵ and tabs ⇥; other controls, format characters (which could turn a line around), halves of
    surrogates and unassigned code points become ⟨hex⟩.
    """
    return "".join(
        _SHOWN.get(c) or (f"⟨{ord(c):04X}⟩" if unicodedata.category(c) in _INVISIBLE else c) for c in str(text)
    )


_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"))
