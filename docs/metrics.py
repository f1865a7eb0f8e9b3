"""Makes `docs/metrics.md`: every metric, the analysis that answers with it, and the page of the app that shows it.

    python -m docs.metrics [--out docs]

Each analysis declares the metrics that it answers with (`METRICS`). So a metric that nobody can reach stands out, and a
test refuses it.
"""

import argparse
from functools import cache
from pathlib import Path

from analyses.definitions import analyses_of, metrics

ROOT = Path(__file__).resolve().parent.parent
_HEADING = """# Metrics: what there is, and where to see it

Each is a function of `workbench.metrics`, NumPy in and out; its docstring has the definition, range, unit, what it
refuses, when it is NaN, and the source. `workbench analyze RECORDING ANALYSIS` answers with it on the command line, the
page in the app. This page is written by `python -m docs.metrics`, from the code.

| metric | what it is | analysis | page |
| --- | --- | --- | --- |
"""


@cache
def pages_of(analysis: str) -> tuple[str, ...]:
    """The pages that show an analysis; Compare shows any, of two recordings."""
    parts = {"expert_card": "utilization", "attention_map": "attention"}  # of one page each
    files = [*sorted((ROOT / "pages").glob("*.py")), *((ROOT / "pages/components" / f"{part}.py") for part in parts)]
    pages = [parts.get(file.stem, file.stem) for file in files if f'"{analysis}"' in file.read_text(encoding="utf-8")]
    return tuple(dict.fromkeys(pages))


def text() -> str:
    """The page."""
    lines = []
    for metric, doc in metrics():
        first = doc.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        names = analyses_of(metric)
        pages = dict.fromkeys(page.replace("_", " ").capitalize() for name in names for page in pages_of(name))
        lines.append(f"| `{metric}` | {first} | {', '.join(f'`{name}`' for name in names)} | {', '.join(pages)} |")
    return _HEADING + "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    (parser.parse_args().out / "metrics.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
