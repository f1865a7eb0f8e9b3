"""The bundle for a paper: what stands beside the folders of results, and all of it in one file.

A bundle is a folder of results, each as `export.write_result` wrote it. `finish` reads which are there, and writes
`paper.tex`, which shows every figure and table, and `reproduce.sh`, which makes them again; so a second command into
the same folder adds to both.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from workbench.export import latex
from workbench.export.files import is_name, put, utf8
from workbench.files.json_file import read_object

_PROVENANCE = "provenance.json"


def finish(folder: Path) -> list[Path]:
    """Writes `paper.tex` and `reproduce.sh` over the results in a folder.

    Raises:
        AnalysisError: they cannot be written.
    """
    sections = list(_sections(folder))
    commands = dict.fromkeys(section.stated["command"] for section in sections)
    script = "\n".join(("#!/usr/bin/env bash", "set -euo pipefail", "", *commands, ""))
    files = {"paper.tex": (latex.document(sections), 0o666), "reproduce.sh": (script, 0o755)}
    for name, (text, mode) in files.items():
        put(folder / name, utf8(text), mode=mode)
    return [folder / name for name in files]


def _sections(folder: Path) -> Iterator[latex.Section]:
    for file in sorted(folder.glob(f"*/{_PROVENANCE}")):
        try:
            stated = read_object(file, halves=True)
            names = [name for name in stated["files"] if name.endswith(".tex")]
            tables = {name: (file.parent / name).read_text(encoding="utf-8") for name in names}
            found = latex.Section(file.parent.name, stated, tables)
            named = all(map(is_name, (file.parent.name, *stated["files"], *stated["figures"])))
            sound = isinstance(stated["command"], str) and bool(latex.document([found]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # a folder that is somebody else's, or damaged
        if named and sound:
            yield found


def zipped(folder: Path) -> bytes:
    """A folder as one zip file, all of it below the folder's name; the same files give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
            entry.external_attr = (0o100755 if file.suffix == ".sh" else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    return packed.getvalue()
