r"""LaTeX that prints what it was given: text, tables, and one document that shows a whole bundle.

Plain pdfLaTeX is enough, with what a small installation has (array, booktabs, graphicx, longtable, pdflscape). It can
set the Latin alphabet with accents and the signs of `_SIGNS`. For any other character (Chinese, emoji …) the text keeps
the character itself, so that XeLaTeX and LuaLaTeX print it, and `declarations` says how pdfLaTeX prints its code point
instead, ⟨4E2D⟩. What is invisible (controls, marks of direction) is a code point everywhere.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.figures.theme import printable

LONGEST_TABLE = 60  # rows that a page of a paper holds; a longer table breaks over pages
LONGEST_SHOWN = 120  # rows of a table that the document still shows
_WIDEST_TEXT = 32  # letters of a column of text; a longer one is folded
# Letters of a line of 6.75 in, by the size of the font; what is wider wants a page turned round, and then 9 in.
_SIZES = {"normalsize": 88, "footnotesize": 104, "scriptsize": 118, "tiny": 156}
_TURNED = 220


def escape(text: str) -> str:
    """Text that LaTeX prints letter by letter."""
    letters = "".join(_LATEX.get(c, c) for c in printable(text))
    return re.sub("-(?=-)", "-{}", letters)  # else two hyphens become a dash


# Signs that pdfLaTeX does not know as letters, or knows in fonts only that a small installation has as bitmaps.
_SIGNS = {
    **{"≤": r"\le", "≥": r"\ge", "−": "-", "±": r"\pm", "×": r"\times", "·": r"\cdot", "÷": r"\div", "≈": r"\approx"},
    **{"∞": r"\infty", "∑": r"\sum", "√": r"\surd", "∩": r"\cap", "∪": r"\cup", "∈": r"\in", "′": r"\prime"},
    **{"⟨": r"\langle", "⟩": r"\rangle", "‖": r"\Vert", "→": r"\rightarrow", "←": r"\leftarrow", "°": r"{}^{\circ}"},
    **{"↵": r"\hookleftarrow", "⇥": r"\rightarrow", "µ": r"\mu"},
    **{letter: f"{{}}^{{{digit}}}" for letter, digit in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", [*"0123456789", "-"], strict=True)},
    **{letter: f"{{}}_{{{digit}}}" for letter, digit in zip("₀₁₂₃₄₅₆₇₈₉₋", [*"0123456789", "-"], strict=True)},
    **{"Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Π": r"\Pi", "Σ": r"\Sigma", "Φ": r"\Phi"},
    **{"Ψ": r"\Psi", "Ω": r"\Omega", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\epsilon"},
    **{"ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "ν": r"\nu"},
    **{"ξ": r"\xi", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "φ": r"\phi", "χ": r"\chi"},
    **{"ψ": r"\psi", "ω": r"\omega"},
}
# Beside the ten specials: what text fonts print as something else, and what begins an argument after \\.
_LATEX = {
    "\\": r"\textbackslash{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    **{bracket: f"{{{bracket}}}" for bracket in "[]*"},
    **{sign: f"${command}$" for sign, command in _SIGNS.items()},
    "…": r"\dots{}",
    "␣": r"\textvisiblespace{}",
    "\u00a0": r"\nobreakspace{}",
}
_LETTERS = frozenset("ßæÆøØœŒłŁı§¶©–—‘’“”")
_ACCENTS = frozenset("̧̀́̂̃̄̆̇̈̊̋̌")


def declarations(text: str) -> list[str]:
    """For each character of a LaTeX text that pdfLaTeX cannot set, the line of a preamble that makes it ⟨its code⟩."""
    strange = sorted({c for c in text if not c.isascii() and not _is_set(c)})
    return [
        rf"\DeclareUnicodeCharacter{{{ord(c):04X}}}{{\ensuremath{{\langle}}{ord(c):04X}\ensuremath{{\rangle}}\allowbreak}}"
        for c in strange
    ]


def _is_set(letter: str) -> bool:
    parts = unicodedata.normalize("NFD", letter)
    accented = len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS
    return letter in _LETTERS or accented


# Tables


@dataclass(frozen=True)
class Extent:
    """How much room a table takes.

    Attributes:
        rows: How many.
        letters: Of a line, about.
    """

    rows: int
    letters: int

    @property
    def size(self) -> str:
        """The largest font in which a line of 6.75 in holds it."""
        return next((size for size, letters in _SIZES.items() if self.letters <= letters), "tiny")

    @property
    def turned(self) -> bool:
        """Whether it wants a page that is turned round."""
        return self.letters > max(_SIZES.values())

    @property
    def shown(self) -> bool:
        """Whether the document shows it."""
        return self.rows <= LONGEST_SHOWN and self.letters <= _TURNED


def extent_of(latex: str) -> Extent:
    """Of a table that `table` wrote."""
    stated = re.search(r"^% (\d+) rows, about (\d+) letters wide", latex, re.MULTILINE)
    return Extent(int(stated[1]), int(stated[2])) if stated else Extent(0, 0)


def table(rows: pd.DataFrame, *, provenance: Mapping[str, Any], caption: str, label: str) -> str:
    """A table as LaTeX: booktabs, over 60 rows a longtable; long texts are folded, many columns get a small font."""
    columns = [cells(rows[column]) for column in rows.columns]
    head = " & ".join(escape(str(column)) for column in rows.columns) + r" \\"
    wide = [_letters(rows[name], written) for name, written in zip(rows.columns, columns, strict=True)]
    align = "".join(
        "r" if _is_number(rows[name]) else "l" if letters <= _WIDEST_TEXT else _FOLDED
        for name, letters in zip(rows.columns, wide, strict=True)
    )
    for index, letters in enumerate(wide):
        if letters > _WIDEST_TEXT and not _is_number(rows.iloc[:, index]):
            columns[index] = [_foldable(value) for value in rows.iloc[:, index].tolist()]
    body = [" & ".join(row) + r" \\" for row in zip(*columns, strict=True)]
    extent = Extent(len(rows), sum(min(letters, _WIDEST_TEXT) + 2 for letters in wide))
    title = rf"\caption{{{escape(caption)}}}\label{{{_label('tab', label)}}}"
    small = [rf"\{extent.size}"] if extent.size != "normalsize" else []
    if len(rows) <= LONGEST_TABLE:
        opening = [r"\begin{table}", r"\centering", title, *small, rf"\begin{{tabular}}{{{align}}}"]
        lines = [*opening, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    else:
        repeated = [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        lines = [rf"\begin{{longtable}}{{{align}}}", title + r" \\", *repeated, *body, r"\end{longtable}"]
        lines = [r"\begingroup", *small, *lines, r"\endgroup"] if small else lines
    packages = ["array"] * (_FOLDED in align) + ["booktabs"] + ["longtable"] * (len(rows) > LONGEST_TABLE)
    stated = json.dumps(provenance, ensure_ascii=False, indent=1).split("\n")
    comments = [printable(line) for line in stated]
    comments.append(f"{extent.rows} rows, about {extent.letters} letters wide")
    comments.append(rf"needs \usepackage{{{','.join(packages)}}}")
    if strange := declarations("\n".join(lines)):
        comments += ["pdflatex also needs, before the document begins:", *strange]
    return "\n".join((*(f"% {comment}" for comment in comments), *lines, ""))


_FOLDED = r">{\raggedright\arraybackslash}p{13em}"


def _foldable(value: object) -> str:
    """A text that may break between words, and within what is longer than a word."""
    if _is_missing(value):
        return "--"
    words = _word(value).split(" ")
    pieces = ([word[i : i + _LONGEST_WORD] for i in range(0, len(word), _LONGEST_WORD)] for word in words)
    return " ".join(r"\allowbreak{}".join(map(escape, each)) for each in pieces)


_LONGEST_WORD = 16


def _letters(column: pd.Series, written: Sequence[str]) -> int:
    """Of the longest cell, as it is read."""
    texts = map(_read, written) if _is_number(column) else (_word(value) for value in column.tolist())
    return max(map(len, (str(column.name), *texts)))


def _read(written: str) -> str:
    return re.sub(r"\\[a-z]+|[${}^]", "", written)


def _label(kind: str, text: str) -> str:
    return f"{kind}:{re.sub('[^A-Za-z0-9]+', '-', text)}"


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def cells(column: pd.Series) -> list[str]:
    """A column as LaTeX: whole numbers whole, others with as many places as their median needs for three digits."""
    values = column.tolist()
    if not _is_number(column):
        return ["--" if _is_missing(value) else escape(_word(value)) for value in values]
    sizes = sorted(abs(value) for value in values if not _is_missing(value) and value and math.isfinite(value))
    median = sizes[(len(sizes) - 1) // 2] if sizes else 1.0
    places = min(max(2 - math.floor(math.log10(median)), 0), 6)
    return ["--" if _is_missing(value) else _number(value, places=places) for value in values]


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _number(value: float, *, places: int) -> str:
    if isinstance(value, int):
        text = f"{value:,}"
    elif math.isinf(value):
        text = r"$-\infty$" if value < 0 else r"$\infty$"
    elif value and (abs(value) >= 1e7 or abs(value) < 1e-4):
        mantissa, exponent = f"{value:.2e}".split("e")
        text = rf"${mantissa}\times 10^{{{int(exponent)}}}$"
    elif value and abs(value) < 10.0 ** (1 - places):  # the column's places would leave one digit or none
        text = f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"
    else:
        text = f"{value:,.{places}f}"
    return text if "$" in text else text.replace("-", "$-$")


# The document


@dataclass(frozen=True)
class Section:
    """One result in the document.

    Attributes:
        folder: Of its files, beside the document.
        stated: What its `provenance.json` says.
        tables: The LaTeX of its tables, by file name.
    """

    folder: str
    stated: Mapping[str, Any]
    tables: Mapping[str, str]


def document(sections: Iterable[Section]) -> str:
    """One document over all results: every figure at its size, every table that a page can hold, with captions."""
    found = list(sections)
    body = [line for section in found for line in _section(section)]
    shown = [t for section in found for t in section.tables.values() if extent_of(t).shown]
    return "\n".join((*_HEAD, *declarations("\n".join([*body, *shown])), r"\begin{document}", *body, _END, ""))


_HEAD = (
    "% All figures and tables of this folder: pdflatex paper.tex",
    r"\documentclass[10pt]{article}",
    r"\usepackage[utf8]{inputenc}",
    "% with the font of a fuller installation where it is there",
    r"\IfFileExists{lmodern.sty}{\usepackage[T1]{fontenc}\usepackage{lmodern}}{}",
    r"\usepackage[textwidth=6.75in,textheight=9in]{geometry}",
    r"\usepackage{array,booktabs,graphicx,longtable,pdflscape}",
    r"\setlength{\tabcolsep}{3pt}\setlength{\emergencystretch}{6em}",
)
_END = r"\end{document}"


def _section(section: Section) -> list[str]:
    stated = section.stated
    models = "; ".join(
        f"{source['model']}{' ' + source['revision'] if source.get('revision') else ''}, {source['digest'][:16]}"
        for source in stated["sources"]
    )
    breakable = re.sub(r"([/=]|\\_|-(?!\{))", r"\1\\allowbreak{}", escape(stated["command"]))
    lines = [rf"\section*{{{escape(section.folder)}}}", rf"{{\small Of {escape(models)}. Made by:\par}}"]
    lines.append(rf"{{\footnotesize\raggedright\ttfamily {breakable}\par}}")
    for name, words in stated["figures"].items():
        caption = escape(f"{words['title']}. {words['caption']}")
        label = _label("fig", f"{section.folder}-{name}")
        lines += [r"\begin{figure}[htbp]", r"\centering", rf"\includegraphics{{{{{section.folder}/{name}}}.pdf}}"]
        lines += [rf"\caption{{{caption}}}\label{{{label}}}", r"\end{figure}"]
    for file, latex in section.tables.items():
        extent, stem = extent_of(latex), file.removesuffix(".tex")
        if not extent.shown:
            said = f"{section.folder}/{stem}.csv ({extent.rows:,} rows, about {extent.letters} letters wide)"
            lines.append(rf"\par\noindent Not set here, for want of room: {escape(said)}.\par")
            continue
        put = rf"\input{{{section.folder}/{file}}}"
        lines += [r"\begin{landscape}", put, r"\end{landscape}"] if extent.turned else [put]
    return [*lines, r"\clearpage"]
