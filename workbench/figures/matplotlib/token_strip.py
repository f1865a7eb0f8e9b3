"""A text as coloured tokens on a printed page: which token goes on which line, and where.

Widths are measured with the fonts that draw, so this is for paper; on the screen the browser knows its own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Page

from workbench.figures import theme
from workbench.figures.matplotlib.layout import (
    LABEL_PT,
    TALLEST_IN,
    TITLE_PT,
    colour_map,
    dress_colour_bar,
    say,
    shorten,
    width_in,
    wrap,
)
from workbench.figures.spec import TokenStrip
from workbench.figures.theme import LIGHT, ColourScale

LINE_IN, BOX_IN, PAD_IN, MARGIN_IN = 0.185, 0.155, 0.025, 0.04
LONGEST_IN = 1.5  # a longer token is cut: one line of a column must hold two


@dataclass(frozen=True)
class Box:
    """One token, placed.

    Attributes:
        text: What is drawn.
        note: What is drawn at the right end.
        colour: Of the background, #rrggbb; None for words that are no token.
        left_in: From the page's left edge.
        width_in: Of the background.
        line: Line, from 0.
    """

    text: str
    note: str
    colour: str | None
    left_in: float
    width_in: float
    line: int


def place(
    texts: Sequence[str],
    colours: Sequence[str | None],
    *,
    page_in: float,
    notes: Sequence[str] | None = None,
    first_line: int = 0,
) -> list[Box]:
    """Tokens in lines that fit the page, each with its note after it; a token with a line break ends the line."""
    boxes: list[Box] = []
    left, line = MARGIN_IN, first_line
    for text, colour, note in zip(texts, colours, notes or [""] * len(texts), strict=True):
        shown = shorten(say(text), LABEL_PT, LONGEST_IN)
        wide = width_in(shown, LABEL_PT) + width_in(note, LABEL_PT) + 2 * PAD_IN
        if left + wide > page_in - MARGIN_IN and left > MARGIN_IN:
            left, line = MARGIN_IN, line + 1
        boxes.append(Box(shown, note, colour, left, wide, line))
        left += wide + 0.01
        if "\n" in text:
            left, line = MARGIN_IN, line + 1
    return boxes


def draw_strip(figure: TokenStrip, page_in: float) -> Page:
    """The strip, its panels one under the other, with the colours' key below. What a page cannot hold is counted."""
    scale: ColourScale | None = None
    palette: dict[Hashable, str] = {}
    if figure.value is not None:
        scale = ColourScale.of(figure.numbers(figure.value), center=figure.center, log=figure.log)
    elif figure.category is not None:
        palette = theme.category_colours(figure.order(figure.category))
    noted = theme.needs_numbers(palette)
    boxes: list[Box] = []
    for name, part in figure.parts("panel"):
        if name:
            boxes += place([name], [None], page_in=page_in, first_line=_next_line(boxes))
        notes = None
        if scale is not None:
            colours = scale.colours(part[figure.value].to_numpy(dtype=float, na_value=float("nan")))
        else:
            colours = [palette[category] for category in part[figure.category]]
            notes = [theme.subscript(category) for category in part[figure.category]] if noted else None
        texts = [str(text) for text in part[figure.text]]
        boxes += place(texts, colours, notes=notes, page_in=page_in, first_line=_next_line(boxes))
    title = wrap(figure.title, TITLE_PT, page_in - 2 * MARGIN_IN)
    named = f"{figure.value_label} (subscript; colours can repeat)" if noted else figure.value_label
    label = wrap(named, LABEL_PT, page_in - 2 * MARGIN_IN)
    key = place([str(c) for c in palette], list(palette.values()), page_in=page_in) if palette and not noted else []
    head_in = 0.06 + 0.16 * (title.count("\n") + 1)
    foot_in = 0.12 + 0.14 * (label.count("\n") + 1) + (_next_line(key) * LINE_IN if scale is None else 0.32)
    boxes = _cut(boxes, lines=int((TALLEST_IN - head_in - foot_in) / LINE_IN), page_in=page_in)
    tall_in = head_in + _next_line(boxes) * LINE_IN + foot_in
    page = Page(figsize=(page_in, tall_in))
    ax = page.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, page_in), ylim=(tall_in, 0))
    ax.set_axis_off()
    ax.text(MARGIN_IN, 0.04, title, fontsize=TITLE_PT, va="top")
    _draw(ax, boxes, top_in=head_in)
    foot = head_in + _next_line(boxes) * LINE_IN + 0.06
    if scale is None:
        ax.text(MARGIN_IN, foot, label, fontsize=LABEL_PT, va="top")
        _draw(ax, key, top_in=foot + 0.04 + 0.14 * (label.count("\n") + 1))
    else:
        _draw_key(page, scale, label, foot_in=foot)
        if figure.table[figure.value].isna().any():
            _draw(ax, [Box("no value", "", LIGHT.missing, _key_in(page_in) + 0.3, 0.55, 0)], top_in=foot)
    return page


def _next_line(boxes: Sequence[Box]) -> int:
    return boxes[-1].line + 1 if boxes else 0


def _cut(boxes: list[Box], *, lines: int, page_in: float) -> list[Box]:
    """The boxes of as many lines as there are, the last of them saying how many tokens are left out."""
    kept = [box for box in boxes if box.line < lines]
    if len(kept) == len(boxes):
        return boxes
    kept = [box for box in kept if box.line < lines - 1]
    left_out = sum(box.colour is not None for box in boxes) - sum(box.colour is not None for box in kept)
    return kept + place([f"… and {left_out:,} more tokens"], [None], page_in=page_in, first_line=lines - 1)


def _draw(ax: Axes, boxes: Sequence[Box], *, top_in: float) -> None:
    coloured = [box for box in boxes if box.colour is not None]
    corners = []
    for box in coloured:
        top, right = top_in + box.line * LINE_IN, box.left_in + box.width_in
        corners.append([(box.left_in, top), (right, top), (right, top + BOX_IN), (box.left_in, top + BOX_IN)])
    fills = [box.colour for box in coloured]
    ax.add_collection(PolyCollection(corners, facecolors=fills, edgecolors=LIGHT.faint, linewidths=0.3), autolim=False)
    for box in boxes:
        # A leading blank is part of the token and of its box; drawn text begins at its first glyph.
        blank_in = width_in(box.text, LABEL_PT) - width_in(box.text.lstrip(" "), LABEL_PT)
        left, right, base = (
            box.left_in + PAD_IN,
            box.left_in + box.width_in - PAD_IN,
            top_in + box.line * LINE_IN + 0.118,
        )
        colour = theme.text_on(box.colour) if box.colour else LIGHT.text
        ax.text(left + blank_in, base, box.text.strip(" "), fontsize=LABEL_PT, color=colour)
        if box.note:
            ax.text(right, base, box.note, fontsize=LABEL_PT, color=colour, ha="right")


def _key_in(page_in: float) -> float:
    return min(page_in - 1.0, 3.0)


def _draw_key(page: Page, scale: ColourScale, label: str, *, foot_in: float) -> None:
    page_in, tall_in = page.get_size_inches()
    top = 1 - (foot_in + 0.11) / tall_in
    key = page.add_axes(((MARGIN_IN + 0.1) / page_in, top, _key_in(page_in) / page_in, 0.08 / tall_in))
    bar = page.colorbar(
        ScalarMappable(Normalize(0, 1), colour_map(scale)),
        cax=key,
        orientation="horizontal",
        extend=scale.extend,
    )
    dress_colour_bar(bar, scale, label)
