"""The command `workbench programme`: several measurements in a row, in pieces that can be stopped and go on."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.extras import require


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(programme)


def programme(
    name: Annotated[str, typer.Argument(help="h200, tiny, or a TOML file of pieces")],
    out: Annotated[Path, typer.Option(help="folder of the measurements; the same again goes on")],
) -> None:
    """Measures piece by piece, each in a process of its own and in its time; the same command again goes on."""
    require("torch", needed_for="a measurement")
    from workbench.efficiency.measurements.programme import read_programme, run_programme

    for made in run_programme(read_programme(name), out):
        print(f"next: workbench analyze {made.path} --all --out report")
