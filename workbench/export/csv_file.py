"""CSV that every reader reads alike: pandas, the csv module, and a spreadsheet, whatever the texts are.

Three things go wrong with CSV. A reader takes a character for the end of a row that another one keeps (carriage
returns, U+0085, U+2028); it drops one, or stops there (NUL, a mark of byte order); or a spreadsheet takes a text for a
formula. So characters that readers disagree about are written visibly, as `printable` does; texts with anything that
some reader takes for a separator are quoted; and a text whose first visible letter begins a formula gets an apostrophe
before it. Numbers are written as numbers, with every digit, negative ones too.
"""

import math
import numbers
import unicodedata
from collections.abc import Iterable

import numpy as np
import pandas as pd

from workbench.figures.theme import printable

_VISIBLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # controls, halves of letters, separators of lines and paragraphs
_KEPT = "\n\t"  # which all readers keep within quotes
_BYTE_ORDER = "\ufeff"  # readers drop it at the start of a file
_SEPARATORS = frozenset(',;\t|\n"')  # LibreOffice also splits at semicolons and tabs, unless it is told otherwise
_FORMULA = ("=", "+", "-", "@")
_UNSEEN = "CM"  # formats, what no letter is assigned to, and marks: none of them stands before a formula for a reader


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV: a header and a line for each row, without the index.

    Args:
        table: Missing values become empty cells, texts are made safe, all else is written as `str` gives it.

    Returns:
        Lines that end with a line feed. Within quotes a text may hold a line feed too, and no other end of a line.
    """
    columns = [[_text(name) if isinstance(name, str) else str(name), *map(_cell, _values(table.iloc[:, at]))]
               for at, name in enumerate(table.columns)]  # fmt: skip
    return "".join(_line(row) for row in zip(*columns, strict=True))


def _values(column: pd.Series) -> Iterable[object]:
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.tolist()


def _line(cells: Iterable[str]) -> str:
    line = ",".join(cells)
    return f"{line}\n" if line else '""\n'  # an empty line would be passed over


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, numbers.Real) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, numbers.Real | np.bool_) else _text(str(value))


def _text(text: str) -> str:
    seen = "".join(printable(c) if _is_visible(c) else c for c in text)
    safe = f"'{seen}" if _begins_formula(seen) else seen
    if safe.strip() == safe and _SEPARATORS.isdisjoint(safe):
        return safe
    return '"' + safe.replace('"', '""') + '"'


def _is_visible(letter: str) -> bool:
    return letter == _BYTE_ORDER or (unicodedata.category(letter) in _VISIBLE and letter not in _KEPT)


def _begins_formula(text: str) -> bool:
    """Whether the first letter that is seen begins a formula; the wide forms do where a Japanese spreadsheet reads."""
    first = next((c for c in text if not c.isspace() and unicodedata.category(c)[0] not in _UNSEEN), "")
    return text.startswith("\t") or unicodedata.normalize("NFKC", first).startswith(_FORMULA)
