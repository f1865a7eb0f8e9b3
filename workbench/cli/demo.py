"""`workbench demo`: the bundled corpus, recorded with the bundled model, and a report over every analysis."""

import time
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.analyze import run_all
from workbench.cli.console import console, token_progress
from workbench.errors import AnalysisError, RecordingError
from workbench.extras import require
from workbench.files.writing import make_folder, refuse_unwritable
from workbench.paths import data_folder, data_folder_option
from workbench.recordings.demo import DEMO_FIELDS, DEMO_MODEL, DEMO_PARENT


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="folder of the report")] = Path("report"),
) -> None:
    """Records the bundled corpus with the bundled model and writes a report over every analysis."""
    require("torch", needed_for="the demo")
    started = time.perf_counter()
    folder = data_folder() / "recordings" / "demo"
    refuse_unwritable(out, AnalysisError)
    make_folder(folder.parent, RecordingError, option=data_folder_option())
    from analyses import catalogue
    from analyses.question import Question
    from workbench.capture.record import record
    from workbench.models.loading import load

    model, parent = (load(name, device="cpu") for name in (DEMO_MODEL, DEMO_PARENT))
    with token_progress(f"recording {model.name} over demo") as update:
        recording = record(
            model, "demo", folder, fields=DEMO_FIELDS, parent=parent, on_progress=update, command=("workbench", "demo")
        )
    run_all([Question(recording, name) for name in catalogue.of_recordings()], out)
    console.print(f"done in {time.perf_counter() - started:.0f} s")
