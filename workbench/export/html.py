"""One HTML page over the results of a batch: every figure with its caption, and links to the files.

The page is static and holds no script; texts are escaped, for a recording's names are somebody's data.
"""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import AnalysisError
from workbench.figures.spec import Figure
from workbench.figures.theme import printable
from workbench.files.writing import write_whole


@dataclass(frozen=True, eq=False)
class Section:
    """One analysis in a report.

    Attributes:
        name: Of the analysis; its folder beside the page.
        question: What it asks.
        not_shown: What its numbers do not say.
        figures: By name, as they were written.
        files: Everything that was written.
    """

    name: str
    question: str
    not_shown: str
    figures: Mapping[str, Figure]
    files: Sequence[Path]


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.25rem; margin-top: 3rem; }
.figures { display: grid; gap: 1.5rem; align-items: start; }
.figures { grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }
.contents { columns: 2; font-size: 0.875rem; margin: 1.5rem 0; }
figure { margin: 0; } figure img { background: #fff; width: 100%; }
figcaption, .files, .not-shown { font-size: 0.875rem; opacity: 0.8; }
dt { float: left; clear: left; width: 12rem; opacity: 0.7; } dd { margin-left: 12rem; }
"""


def write_report(
    page: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
    left_out: Sequence[str] = (),
) -> None:
    """Writes the page; figures are taken from the folders beside it.

    Args:
        page: The HTML file.
        title: Its heading.
        facts: What the results are of, by name.
        sections: The analyses, in order.
        left_out: Of each analysis that was asked and refused, why.
    """
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    body = _contents(sections) + "".join(_section(section, page.parent) for section in sections)
    if left_out:
        why = "".join(f"<li>{_text(reason)}</li>" for reason in left_out)
        body += f"<h2 id='left-out'>Left out</h2><ul class='not-shown'>{why}</ul>"
    document = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1><dl>{listed}</dl>{body}</body></html>\n"
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, document.encode(), AnalysisError)


def _contents(sections: Sequence[Section]) -> str:
    listed = "".join(f"<li><a href='#{_text(each.name)}'>{_text(each.question)}</a></li>" for each in sections)
    return f"<ul class='contents'>{listed}</ul>" if len(sections) > 1 else ""


def _section(section: Section, folder: Path) -> str:
    of = {file.name: _text(Path(os.path.relpath(file, folder)).as_posix()) for file in section.files}
    drawn = "".join(
        f"<figure><a href='{of[f'{name}.pdf']}'><img src='{of[f'{name}.svg']}' alt='{_text(figure.alt)}'></a>"
        f"<figcaption><b>{_text(figure.title)}.</b> {_text(figure.caption)}</figcaption></figure>"
        for name, figure in section.figures.items()
    )
    links = " · ".join(f"<a href='{path}'>{_text(name)}</a>" for name, path in of.items())
    return (
        f"<h2 id='{_text(section.name)}'>{_text(section.question)}</h2>"
        f"<p class='not-shown'>{_text(section.not_shown)}</p>"
        f"<div class='figures'>{drawn}</div><p class='files'>{links}</p>"
    )


def _text(value: object) -> str:
    """Letters, with what is invisible made visible; line breaks stay, for HTML takes them for blanks."""
    return html.escape("\n".join(map(printable, str(value).split("\n"))), quote=True)
