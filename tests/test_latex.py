"""LaTeX of tables and of the document over a bundle: what stands in it is printed letter by letter, and it compiles."""

import re
import subprocess

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from tests.figures.examples import CANARY, load_map
from tests.test_export import PROVENANCE, TABLE
from workbench.export import latex
from workbench.export.bundle import finish
from workbench.export.files import write_result, write_table

LATEX_ONLY = r"\\[a-zA-Z]+(\{\})?|\\[&%$#_{}]|\{[][*]\}|-\{\}|\$\\[a-zA-Z]+\$|\$-\$|\$\{\}[_^]\{(\d|-|\\circ)\}\$"
STRANGE = " ".join(latex._SIGNS) + (
    "中文 한글 ру́сский עברית العربية ไทย 😀 e\u0301 \u202edlrow \u0000\u0007 \u00a0 ŁÞ½€″"
)


def test_latex_is_escaped_rounded_and_says_where_it_comes_from(tmp_path):
    _, path = write_table(TABLE, tmp_path / "t", provenance=PROVENANCE, caption="100 % of a_b", label="expert load")
    lines = path.read_text().splitlines()
    comments = [line for line in lines if line.startswith("%")]
    assert any('"digest": "sha256:0123"' in line for line in comments)
    assert comments[-2:] == ["% 3 rows, about 73 letters wide", r"% needs \usepackage{booktabs}"]
    assert lines[len(comments) :] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{100 \% of a\_b}\label{tab:expert-load}",
        r"\begin{tabular}{rrrrll}",
        r"\toprule",
        r"layer & load\_over\_balance & p & tokens & dead & top token \\",
        r"\midrule",
        r"0 & 1.250 & $1.23\times 10^{-5}$ & 12,345 & no & =SUM(A1) \\",
        r"1 & 0.500 & 0.500 & 7 & yes & 50\% a\_b \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$ \\",
        r"2 & -- & 1.000 & 0 & no & line$\hookleftarrow$break \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@given(st.text())
def test_no_text_is_a_command_of_latex(text):
    bare = re.sub(LATEX_ONLY, "", latex.escape(text))
    assert not re.search(r"[\\{}$&#^_%~\[\]*`<>|\n\r]|--", bare)


def test_escape_of_all_specials():
    assert latex.escape(r"\{}$&#^_%~") == (r"\textbackslash{}\{\}\$\&\#\textasciicircum{}\_\%\textasciitilde{}")
    assert latex.escape("a -- b --- [c] * <d> `e` ≤ −1") == (
        r"a -{}- b -{}-{}- {[}c{]} {*} \textless{}d\textgreater{} \textasciigrave{}e\textasciigrave{} $\le$ $-$1"
    )
    assert "script" in latex.escape(CANARY)


def test_negative_infinite_and_large_numbers():
    column = pd.Series([-1.5, np.inf, -np.inf, 2.5e9, 0.0])
    assert latex.cells(column) == ["$-$1.50", r"$\infty$", r"$-\infty$", r"$2.50\times 10^{9}$", "0.00"]
    assert latex.cells(pd.Series([-3, 1000], dtype="Int64")) == ["$-$3", "1,000"]
    assert latex.cells(pd.Series([1, None], dtype="Int64")) == ["1", "--"]


def test_a_long_table_breaks_over_pages(tmp_path):
    long = pd.concat([TABLE] * 30)
    _, path = write_table(long, tmp_path / "t", provenance=PROVENANCE, caption="c", label="l")
    text = path.read_text()
    assert r"\begin{longtable}{rrrrll}" in text
    assert r"% needs \usepackage{booktabs,longtable}" in text
    assert text.count("\n0 & 1.250") == 30
    assert text.index(r"\endhead") < text.index(r"\endfoot") < text.index("\n0 & 1.250")


def test_many_columns_get_a_small_font_and_a_long_text_is_folded(tmp_path):
    wide = pd.DataFrame({"note": ["a sentence that is too long for one line of a table"]})
    wide = wide.assign(**{f"column {i}": [0.5] for i in range(10)})
    _, path = write_table(wide, tmp_path / "t", provenance=PROVENANCE, caption="c", label="l")
    text = path.read_text()
    assert r"\tiny" in text and r"p{13em}rrrrrrrrrr}" in text
    assert r"% needs \usepackage{array,booktabs}" in text
    extent = latex.extent_of(text)
    assert (extent.rows, extent.letters, extent.turned, extent.shown) == (1, 34 + 10 * 10, False, True)
    assert latex.Extent(1, 300).size == "tiny" and not latex.Extent(1, 300).shown and not latex.Extent(500, 10).shown


def test_a_character_that_pdflatex_cannot_set_stays_and_its_declaration_is_said(tmp_path):
    table = pd.DataFrame({"token": ["né 中", "\u202e"]})
    _, path = write_table(table, tmp_path / "t", provenance=PROVENANCE, caption="c", label="l")
    text = path.read_text()
    assert "né 中" in text and r"$\langle$202E$\rangle$" in text
    declared = r"% \DeclareUnicodeCharacter{4E2D}{\ensuremath{\langle}4E2D\ensuremath{\rangle}\allowbreak}"
    assert [line for line in text.splitlines() if "Declare" in line] == [declared]


def compiled(pdflatex, folder) -> str:
    """What pdflatex logs of `paper.tex`."""
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return done.stdout


def test_the_document_over_a_bundle_compiles_whatever_stands_in_it(pdflatex, tmp_path):
    texts = [CANARY, STRANGE, r"\input{secrets} \end{document} %", "-- `` '' ?` !` <<"]
    strange = pd.DataFrame({"token": texts, "load": [0.1, 2, 3, 4]})
    wide = pd.concat([strange.add_prefix(prefix) for prefix in "abcd"], axis=1)
    tables = {"tokens": strange, "long": pd.concat([TABLE] * 30), "wide": wide, "endless": pd.concat([TABLE] * 60)}
    figure = load_map(2, 4)
    object.__setattr__(figure, "caption", STRANGE)
    write_result(tables, {"map": figure}, tmp_path / "loads_1", provenance=PROVENANCE, captions={"tokens": STRANGE})
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "provenance.json").write_text("{}")
    files = finish(tmp_path)
    log = compiled(pdflatex, tmp_path)
    text = files[0].read_text()
    assert "Overfull" not in log and "Missing character" not in log and "undefined" not in log
    assert r"\includegraphics{{loads_1/map}.pdf}" in text and text.count(r"\input{loads\_1/") == 0
    assert [name for name in tables if rf"\input{{loads_1/{name}.tex}}" in text] == ["tokens", "long", "wide"]
    assert "loads\\_1/endless.csv (180 rows, about 73 letters wide)" in text
    assert r"\begin{landscape}" in text and "somebody" not in text
