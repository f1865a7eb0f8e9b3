"""Every kind on paper: vectors, embedded fonts, nothing clipped or covered, the same bytes every time."""

import dataclasses
import functools
import io
import itertools
import re
import threading
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from tests.figures.examples import CANARY, awkward, examples, load_map, strip
from workbench.figures.matplotlib.draw import paper, save
from workbench.figures.matplotlib.layout import say
from workbench.figures.matplotlib.token_strip import BOX_IN, place

FIGURES = {**examples(), **awkward()}
WIDE = ("domains-4x32", "balance-4", "bars-panels", "strip-loss")


def saved(page, kind: str) -> bytes:
    file = io.BytesIO()
    save(page, file, kind=kind, metadata={"Title": "t"})
    return file.getvalue()


@functools.cache
def page_of(name: str, width: str = "column"):
    return paper(FIGURES[name], width=width)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *((n, "column") for n in FIGURES if "domains-28" not in n),
        *((n, "text") for n in WIDE),
        ("domains-28x64", "text"),
    ],
)
def test_every_kind_is_whole_and_readable(name, width):
    page = page_of(name, width)
    wide, tall = page.get_size_inches()
    assert wide == {"column": 3.25, "text": 6.75}[width]
    assert tall <= 9.0
    page.draw_without_rendering()
    texts = drawn_texts(page)
    assert {text.get_fontsize() for text in texts} <= {7.0, 8.0, 9.0}
    assert not any(text.get_parse_math() for text in texts)
    names, boxes = [t.get_text() for t in texts], np.array([t.get_window_extent().extents for t in texts])
    cut = (boxes[:, :2] < -1).any(axis=1) | (boxes[:, 2:] > page.bbox.extents[2:] + 1).any(axis=1)
    assert [name for name, out in zip(names, cut, strict=True) if out] == []
    level = [index for index, text in enumerate(texts) if text.get_rotation() != 35]  # a slanted box is mostly empty
    low, high = boxes[level, :2] + 1, boxes[level, 2:] - 1
    covers = np.triu(((low[:, None] < high[None]) & (low[None] < high[:, None])).all(axis=2), k=1)
    assert [(names[level[i]], names[level[j]]) for i, j in np.argwhere(covers)] == []
    for legend in page.legends:
        assert not any(legend.get_window_extent().padded(-1).overlaps(ax.bbox) for ax in page.axes)


def drawn_texts(page) -> list[Text]:
    """All texts that are seen: an axis also keeps names of ticks beyond its ends."""
    unseen = set()
    for axis in (axis for ax in page.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        unseen |= {label for tick in beyond for label in (tick.label1, tick.label2)}
    return [t for t in page.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in unseen]


@pytest.mark.parametrize("name", ["load-28x64", "domains-4x32", "entropies-4", "few categories", "flow"])
def test_pdf_and_svg_are_vectors_with_their_fonts(name):
    page = page_of(name)
    pdf, svg = saved(page, "pdf"), saved(page, "svg").decode()
    assert b"/Subtype /Image" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    assert b"/CreationDate" not in pdf
    assert "<image" not in svg
    assert "<text" not in svg  # outlines
    assert {element.tag.rpartition("}")[2] for element in ET.fromstring(svg).iter()} <= SVG


SVG = {
    *(
        "svg",
        "metadata",
        "RDF",
        "Work",
        "type",
        "title",
        "format",
        "creator",
        "Agent",
        "defs",
        "style",
        "g",
        "path",
        "use",
    ),
    *("clipPath", "rect", "pattern"),
}


def test_one_cell_is_one_shape():
    page = page_of("load-4x32")
    assert len(page.axes[0].collections[0].get_array().ravel()) == 4 * 32


@pytest.mark.parametrize(
    ("name", "kind"),
    [("load-4x32", "pdf"), ("load-4x32", "svg"), ("load-4x32", "png"), ("lines-4", "svg"), ("few categories", "pdf")],
)
def test_the_same_figure_gives_the_same_bytes(name, kind):
    assert saved(page_of(name), kind) == saved(paper({**examples(), **awkward()}[name]), kind)


def test_the_settings_of_others_neither_matter_nor_change():
    plain = saved(paper(load_map(4, 8)), "svg")
    with matplotlib.rc_context({"font.size": 20, "text.parse_math": True, "svg.fonttype": "none"}):
        before = dict(matplotlib.rcParams)
        assert saved(paper(load_map(4, 8)), "svg") == plain
        assert dict(matplotlib.rcParams) == before


def test_threads_draw_the_same():
    plain, drawn = saved(paper(load_map(4, 8)), "svg"), []
    threads = [threading.Thread(target=lambda: drawn.append(saved(paper(load_map(4, 8)), "svg"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [plain] * 2


def test_text_that_no_font_has_is_written_as_its_number():
    assert say("Ελληνικά русский خبير") == "Ελληνικά русский خبير"
    assert say("a\U000e0041\U0001f642\x00") == "a⟨E0041⟩⟨1F642⟩⟨0000⟩"
    assert say(CANARY) == CANARY


def test_a_log_map_shows_zeros_at_the_low_end_and_missing_cells_hatched():
    figure = load_map(4, 32)
    table = figure.table.assign(load=figure.table["load"].where(figure.table["expert"] != 3))
    page = paper(dataclasses.replace(figure, table=table))
    assert page.axes[0].patch.get_hatch()
    assert [text.get_text() for legend in page.legends for text in legend.get_texts()] == ["no value"]
    assert page.axes[0].collections[0].get_array().mask.sum() == 4


def test_legend_names_interval_and_null():
    texts = [text.get_text() for legend in page_of("bars-28").legends for text in legend.get_texts()]
    assert texts == ["95 % interval, stratified jackknife", "expected under the null"]


def test_an_interval_need_not_hold_its_value():
    figure = FIGURES["bars-domain"]
    table = figure.table.assign(low=figure.table["value"] + 0.1, high=figure.table["value"] + 0.2)
    paper(dataclasses.replace(figure, table=table))


def test_tokens_fit_their_boxes_and_break_where_the_text_does():
    texts = [*(" word",) * 30, "end\n", "next", "x" * 200]
    boxes = place(texts, ["#ffffff"] * len(texts), page_in=3.25)
    assert [box.text for box in boxes[:31]] == [*(" word",) * 30, "end↵"]
    assert all(box.left_in + box.width_in <= 3.25 for box in boxes)
    assert all(a.line < b.line or a.left_in + a.width_in <= b.left_in for a, b in itertools.pairwise(boxes))
    assert boxes[31].line == boxes[30].line + 1
    assert boxes[32].text.endswith("…")
    assert BOX_IN < 0.2


def test_a_strip_too_long_for_a_page_counts_what_it_leaves_out():
    page = paper(strip(700, colour="loss"))
    (said,) = [text.get_text() for text in page.findobj(Text) if "more tokens" in text.get_text()]
    left_out = int(re.search(r"[\d,]+", said)[0].replace(",", ""))
    drawn = sum(len(c.get_paths()) for c in page.axes[0].collections)
    assert drawn - 1 + left_out == 700  # one box is the key's "no value"
    assert page.get_figheight() <= 9.0


def test_streams_are_as_wide_as_their_values():
    figure = FIGURES["flow"]
    streams = [patch for patch in page_of("flow").axes[0].patches if patch.get_alpha()]
    leaving = np.array([patch.get_path().vertices[7, 1] - patch.get_path().vertices[0, 1] for patch in streams])
    arriving = np.array([patch.get_path().vertices[4, 1] - patch.get_path().vertices[3, 1] for patch in streams])
    widths = figure.table.sort_values(["expert"])["tokens"].to_numpy()
    assert sorted(leaving / leaving.sum()) == pytest.approx(sorted(widths / widths.sum()))
    assert arriving / arriving.sum() == pytest.approx(leaving / leaving.sum())


def test_points_off_the_scale_do_no_harm():
    figure = FIGURES["points"]
    table = figure.table.assign(loss=figure.table["loss"].where(np.arange(len(figure.table)) % 3 != 0))
    paper(dataclasses.replace(figure, table=table))
