"""What both renderers agree on: colours, numbers, ticks, printable text."""

import math
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.figures import theme
from workbench.figures.theme import ColourScale

TINY = st.sampled_from([0.0, 5e-324, 1e-310, 1e-299])
POSITIVE = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200).map(np.array)
ANY = st.lists(TINY | st.floats(-1e6, 1e6), min_size=1, max_size=200).map(np.array)


@given(ANY, st.none() | st.floats(-10, 10))
def test_positions_rise_with_values_inside_the_scale(values, center):
    scale = ColourScale.of(values, center=center, log=False)
    positions = scale.positions(np.sort(values))
    assert ((positions >= 0) & (positions <= 1)).all()
    assert (np.diff(positions) >= 0).all()
    assert scale.low < scale.high
    if center is not None:
        assert scale.positions(center) == pytest.approx(0.5)
    else:
        assert scale.extend == "neither"


@given(POSITIVE, st.none() | st.floats(0.01, 100))
def test_positions_of_a_log_scale(values, center):
    scale = ColourScale.of(values, center=center, log=True)
    positions = scale.positions(np.sort(values))
    assert ((positions >= 0) & (positions <= 1)).all()
    assert (np.diff(positions) >= 0).all()
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks)
    if center is not None:
        assert scale.positions(center) == pytest.approx(0.5, abs=1e-6)


def test_a_dead_expert_does_not_bleach_the_others():
    loads = np.array([0.0, *np.geomspace(0.5, 2, 400), 900.0])
    scale = ColourScale.of(loads, center=1.0, log=True)
    assert (scale.low, scale.high) == (0.5, 2.0)
    assert scale.extend == "both"
    assert scale.tick_labels == ["0.5", "0.75", "1", "1.5", "2"]


def test_values_without_a_number_are_grey():
    scale = ColourScale.of(np.array([1.0, np.nan, 3.0]), center=None, log=False)
    assert math.isnan(scale.positions(np.nan))
    colours = scale.colours(np.array([1.0, np.nan, 3.0]))
    assert colours == [theme.SEQUENTIAL[0], theme.LIGHT.missing, theme.SEQUENTIAL[-1]]


def test_scale_of_nothing_known_has_colours_and_ends():
    assert ColourScale.of(np.array([0.0, 0.0]), center=None, log=True).extend == "min"


@given(st.floats(-1e12, 1e12), st.integers(2, 6))
def test_number_reads_back_to_its_digits(value, digits):
    text = theme.number(value, digits=digits)
    plain = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")).replace("−", "-").replace(",", "")
    plain = re.sub(r"^(-?)10(-?\d+)$", r"\g<1>1e\2", plain) if re.search("10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]", text) else plain
    assert float(re.sub(r"×10", "e", plain)) == pytest.approx(value, rel=0.6 * 10 ** (1 - digits), abs=1e-300)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (12345, "12,345"),
        (-0.25, "−0.25"),
        (2e-5, "2×10⁻⁵"),
        (1e9, "10⁹"),
        (math.nan, "no value"),
    ],
)
def test_number(value, text):
    assert theme.number(value) == text


@given(st.integers(1, 500), st.integers(1, 40), st.integers(0, 64))
def test_ticks_are_as_many_as_fit(count, fits, first):
    shown = theme.tick_indices(list(range(first, first + count)), fits=fits)
    assert shown == sorted(set(shown))
    assert 1 <= len(shown) <= max(fits, 1)
    assert shown[-1] < count


def test_ticks_of_experts_are_round():
    assert theme.tick_indices(list(range(64)), fits=10) == [0, 8, 16, 24, 32, 40, 48, 56]
    assert theme.tick_indices([1, 3, 5, 7, 9, 11], fits=3) == [0, 2, 4]
    assert theme.tick_indices(list("abcdef"), fits=3) == [0, 2, 4]


@given(st.text())
def test_printable_text_hides_nothing(text):
    shown = theme.printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp") for c in shown)
    assert len(shown) >= len(text)


def test_printable_text_names_what_it_replaces():
    assert theme.printable("a\n\tb\u202e\ud83d") == "a↵⇥b⟨202E⟩⟨D83D⟩"


def test_categories_have_colours_of_their_own_for_a_while():
    assert len(set(theme.category_colours(list(range(28))).values())) == 28
    assert len(theme.category_colours([f"domain {i}" for i in range(100)])) == 100
    assert theme.category_colours([9, 5])[5] == theme.category_colours(list(range(8)))[5]
    assert theme.category_colours(["9", "5"])["5"] == theme.category_colours([5])[5]


def test_many_numbered_categories_are_written_too():
    assert theme.needs_numbers(range(8))
    assert theme.needs_numbers(map(str, range(8)))
    assert not theme.needs_numbers(range(7))
    assert not theme.needs_numbers(f"domain {i}" for i in range(8))
    assert theme.subscript(41) == "₄₁"


def test_text_has_contrast_on_every_colour():
    for colour in (*theme.SEQUENTIAL, *theme.DIVERGING, *theme.category_colours(list(range(28))).values()):
        assert contrast(colour, theme.text_on(colour)) >= 4.5


def contrast(one: str, other: str) -> float:
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_ticks_that_lie_close_are_told_apart():
    labels = theme.ColourScale.of(np.array([0.985, 0.9974]), center=None, log=False).tick_labels
    assert len(set(labels)) == len(labels) > 2
    ticks = theme.ColourScale.of(np.array([0.985, 0.9974]), center=None, log=False).ticks
    assert [float(label) for label in labels] == pytest.approx(ticks, abs=1e-6)


def test_rates_near_nothing_do_not_bleach_the_rest():
    """Ratios of rates: at most 4, some of them from a hundredth down to nothing; of few values all are within."""
    rng = np.random.default_rng(0)
    ratios = np.concatenate([np.exp(rng.uniform(-1.3, np.log(4), 280)), 10.0 ** rng.uniform(-5, -2, 20)])
    scale = theme.ColourScale.of(ratios, center=1.0, log=True)
    assert (scale.low, scale.high, scale.extend) == (0.1, 10.0, "min")
    few = theme.ColourScale.of(np.array([0.02, 0.9, 2.0]), center=1.0, log=True)
    assert (few.low, few.high, few.extend) == (0.01, 100.0, "neither")
