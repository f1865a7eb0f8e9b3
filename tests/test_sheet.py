"""CSV: pandas, the csv module and a spreadsheet read the same cells, whatever the characters; none is a formula."""

import csv
import io
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workbench.export.csv_file import csv_text
from workbench.export.files import Provenance, write_table

CLASSES = {
    "carriage return": "a\rb",
    "carriage return, then a formula": "a\r=HYPERLINK(1)",
    "line feed": "a\nb",
    "line feed, then a formula": "a\n=1+1",
    "both": "a\r\nb",
    "NUL": "a\0b",
    "controls": "a\x01\x07\x08\x0b\x0c\x1b\x1c\x1d\x1e\x1fb\x7f",
    "controls of the second block": "a\x80\x85\x9fb",
    "separators of lines": "a\u2028b\u2029c",
    "tab": "a\tb",
    "a tab first": "\ta",
    "quotes": 'a"b""c"',
    "a quote first": '"a',
    "commas": "a,b",
    "semicolons": "a;b;=1+1",
    "bars": "a|b",
    "blanks around": "  a ",
    **{f"{sign} first": f"{sign}1+1" for sign in "=+-@＝＋－＠﹢﹦"},
    "blanks, then a formula": "  =1+1",
    "a wide blank, then a formula": "\u3000=1+1",
    "a mark of byte order, then a formula": "\ufeff=1+1",
    "no width, then a formula": "\u200b\u200d=1+1",
    "a mark of direction, then a formula": "\u202e=1+1",
    "an accent, then a formula": "\u0301=1+1",
    "a control, then a formula": "\x00=1+1",
    "a return, then a formula": "\r\n=1+1",
    "a quote, then a formula": '"=1+1',
    "DDE": "=cmd|' /C calc'!A0",
    "half a letter": "a\ud800b",
    "an apostrophe": "'a",
    "a backslash": "a\\",
    "nothing but a return": "\r",
}


def spreadsheet(text: str) -> list[list[str]]:
    """Cells as LibreOffice reads them with all that it takes for separators, line by line; quotes keep a cell whole."""
    rows, line = [], ""
    for piece in re.split("\r\n|\r|\n", text)[:-1]:
        line = f"{line}\n{piece}" if line else piece
        if line.count('"') % 2 == 0:
            (cells,) = csv.reader([line.replace("\t", ",").replace(";", ",")] if '"' not in line else [mask(line)])
            rows.append([unmask(cell) for cell in cells])
            line = ""
    assert not line, "a quote is never closed"
    return rows


def mask(line: str) -> str:
    """The separators within quotes as letters of private use, those outside as commas."""
    pieces = line.split('"')
    inside = [piece.translate(_HIDDEN) for piece in pieces[1::2]]
    outside = [piece.replace("\t", ",").replace(";", ",") for piece in pieces[::2]]
    return '"'.join(piece for pair in zip(outside, [*inside, ""], strict=True) for piece in pair).removesuffix('"')


_HIDDEN = {ord(c): 0xF0000 + ord(c) for c in ",;\t\n"}


def unmask(cell: str) -> str:
    return cell.translate({hidden: shown for shown, hidden in _HIDDEN.items()})


def readings(text: str) -> list[list[list[str]]]:
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, header=None)
    lines = pd.read_csv(io.BytesIO(text.encode()), dtype=str, keep_default_na=False, header=None)
    return [
        frame.to_numpy().tolist(),
        lines.to_numpy().tolist(),
        list(csv.reader(io.StringIO(text, newline=""))),
        list(csv.reader(io.StringIO(text))),  # as open() without newline="": other ends of lines become line feeds
        spreadsheet(text),
    ]


def is_formula(cell: str) -> bool:
    first = next((c for c in cell if not c.isspace() and unicodedata.category(c)[0] not in "CM"), "")
    return unicodedata.normalize("NFKC", first).startswith(("=", "+", "-", "@")) or cell.startswith(("\t", "\r"))


def check(table: pd.DataFrame) -> list[list[str]]:
    text = csv_text(table)
    first, *others = readings(text)
    assert all(other == first for other in others)
    assert [len(row) for row in first] == [table.shape[1]] * (len(table) + 1)
    assert len(text.splitlines()) == text.count("\n"), "nothing but a line feed ends a line"
    return first


@pytest.mark.parametrize("text", CLASSES.values(), ids=CLASSES)
def test_every_reader_reads_the_same_cells_and_none_is_a_formula(text):
    table = pd.DataFrame({"domain": pd.Series(["plain", text, text], dtype=object), "load": [1.5, -2.5, 0.25]})
    named = pd.concat([table, pd.DataFrame({text: [1, 2, 3]}, index=table.index)], axis=1) if text.isascii() else table
    rows = check(named)
    assert [row[1] for row in rows[1:]] == ["1.5", "-2.5", "0.25"], "numbers stay numbers"
    assert not any(is_formula(cell) for row in rows for cell in (row[0], *row[2:]) if not cell.isdecimal())
    assert rows[2][0] == rows[3][0] != "plain"


@pytest.mark.parametrize("name", ["line feed", "tab", "quotes", "commas", "semicolons", "bars", "blanks around",
                                  "an apostrophe", "a backslash"])  # fmt: skip
def test_what_every_reader_can_keep_is_kept(name):
    assert check(pd.DataFrame({"domain": [CLASSES[name]], "load": [1]}))[1][0] == CLASSES[name]


def test_what_they_cannot_is_seen():
    texts = ["a\rb", "a\x00b", "\ufeffa", "a\u2028b", "a\x85b", "=a\r"]
    rows = check(pd.DataFrame({"domain": texts, "load": range(6)}))
    assert [row[0] for row in rows[1:]] == ["a␍b", "a⟨0000⟩b", "⟨FEFF⟩a", "a⟨2028⟩b", "a⟨0085⟩b", "'=a␍"]


signs = st.sampled_from("\r\n\t\0\x0b\x1b\x85\u2028\u2029\ufeff\u200b\u202e\u3000 \"',;|=+-@＝－a1\\")
texts = st.text(st.one_of(signs, st.characters(exclude_categories=["Cs"])), max_size=6)


@settings(max_examples=150)
@example([("", "")], "\uaaf5=")  # a mark that takes room, before what begins a formula
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), texts.filter(lambda text: text != "b"))
def test_any_text_is_read_alike(cells, name):
    first, second = (pd.Series(list(column), dtype=object) for column in zip(*cells, strict=True))
    rows = check(pd.DataFrame({name: first, "b": second}))
    assert not any(is_formula(cell) for row in rows for cell in row)


def test_a_number_is_a_number_whatever_its_type():
    table = pd.DataFrame(
        {
            "float": [-0.1, np.nan, np.inf],
            "single": np.array([0.1, -2.0, np.nan], np.float32),
            "whole": [-1, 0, 2**53 + 1],
            "missing": pd.array([1, None, -3], dtype="Int64"),
            "mixed": pd.Series([-1, None, "-1"], dtype=object),
            "dead": [True, False, True],
        }
    )
    assert csv_text(table) == (
        "float,single,whole,missing,mixed,dead\n-0.1,0.1,-1,1,-1,True\n,-2.0,0,,,False\n"
        "inf,,9007199254740993,-3,'-1,True\n"
    )


def test_a_row_of_nothing_is_a_row():
    assert csv_text(pd.DataFrame({"a": [np.nan, 1.0]})) == 'a\n""\n1.0\n'
    assert csv_text(pd.DataFrame({"a": [], "b": []})) == "a,b\n"


def test_what_is_written_is_that(tmp_path):
    how = {"provenance": Provenance(analysis="a", command="c"), "caption": "c", "label": "l"}
    table = pd.DataFrame({"domain": ["a\r=1+1"], "load": [0.5]})
    file, _ = write_table(table, tmp_path / "t", **how)
    assert file.read_bytes() == "domain,load\na␍=1+1,0.5\n".encode()
    assert pd.read_csv(file).shape == (1, 2)
