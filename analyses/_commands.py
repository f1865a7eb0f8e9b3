"""The commands that analyses add to `workbench`: `analyze` and `demo`. Found through the package's entry point."""

import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from workbench.cli import RECORDINGS, console, token_progress

if TYPE_CHECKING:
    from workbench.figures.theme import Width
    from workbench.measurement import Measurement
    from workbench.recording import Recording


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(analyze)
    app.command()(demo)


def analyze(
    recording: Annotated[Path, typer.Argument(help="folder of a recording, or of a measurement")],
    names: Annotated[list[str] | None, typer.Argument(help="analyses; --all for every one")] = None,
    out: Annotated[Path, typer.Option(help="folder for tables and figures")] = Path("out"),
    all_: Annotated[bool, typer.Option("--all", help="every analysis")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, for one analysis")] = None,
    width: Annotated[str, typer.Option(help="of figures: column (3.25 in) or text (6.75 in)")] = "column",
    phase: Annotated[str | None, typer.Option(help="prefill or decode, of a recording that holds both")] = None,
    against: Annotated[Path | None, typer.Option(help="a second recording of the same corpus to compare with")] = None,
    ceiling: Annotated[Path | None, typer.Option(help="the first recording's model recorded again")] = None,
    experts: Annotated[str, typer.Option(help="same, matched or auto: whether equal ids are equal experts")] = "auto",
) -> None:
    """Runs analyses of a recording, or of two, and writes their tables and figures, with a page that shows them all."""
    from analyses import _batch
    from workbench.errors import AnalysisError
    from workbench.recording import Recording

    opened = _batch.open_input(recording)
    known = _batch.names(_batch.kind(opened))
    chosen = known if all_ else list(names or [])
    if not chosen:
        raise AnalysisError(f"name an analysis, or give --all; there are {', '.join(known)}.")
    if settings and len(chosen) != 1:
        raise AnalysisError(f"--set belongs to one analysis, and {len(chosen)} were named; run them one by one.")
    for name in chosen:
        _batch.parse_settings(_batch.get(name), settings or [])  # refused before anything is run
    if width not in ("column", "text"):
        raise AnalysisError(f"--width is {width!r}; column or text was wanted.")
    if against is None and (ceiling is not None or experts != "auto"):
        raise AnalysisError(
            "--ceiling and --experts are about two recordings; give the other one: --against RECORDING."
        )
    if phase is not None:
        if not isinstance(opened, Recording):
            raise AnalysisError(f"--phase is about recordings, and {recording} holds a measurement; leave it out.")
        opened = opened.of_phase(phase)
    other = Recording.open(against) if against is not None else None
    _run(
        opened, chosen, out, settings=settings or [], width=cast("Width", width), pass_over=all_,
        against=other, ceiling=ceiling, experts=experts,
    )  # fmt: skip


def _run(
    recording: "Recording | Measurement",
    names: list[str],
    out: Path,
    *,
    settings: list[str],
    width: "Width",
    pass_over: bool = False,
    against: "Recording | None" = None,
    ceiling: Path | None = None,
    experts: str = "auto",
) -> Path:
    """Runs the analyses; with `pass_over` those that refuse the recording are named and left out, unless all do."""
    from analyses import _batch
    from workbench.errors import AnalysisError
    from workbench.export import write_reproduce
    from workbench.report import Section, write_report

    sections: list[Section] = []
    commands: list[str] = []
    for name in names:
        started = time.perf_counter()
        given = _batch.with_ceiling(_batch.get(name), settings, ceiling)
        try:
            with console.status(f"{name} …"):
                files, drawn = _batch.analyze(
                    recording, name, out, settings=given, width=width, against=against, experts=experts
                )
        except AnalysisError as error:
            if not pass_over or (name == names[-1] and not sections):
                raise
            console.print(f"left out: {error}", soft_wrap=True)
            continue
        console.print(f"{name}: {len(files)} files in {time.perf_counter() - started:.1f} s")
        question, _, rest = (inspect.getdoc(_batch.get(name)) or "").partition("\n\n")
        sections.append(Section(name, question, " ".join(rest.split()), drawn, files))
        commands.append(_batch.command(recording, name, settings=given, width=width, against=against, experts=experts))
    write_reproduce(out, commands)
    page = out / "index.html"
    title, facts = _facts(recording, against)
    write_report(page, title=title, facts=facts, sections=sections)
    console.print(f"report: {page}", soft_wrap=True)
    return page


def _facts(recording: "Recording | Measurement", against: "Recording | None") -> tuple[str, dict[str, str]]:
    """Title and facts of a report."""
    from workbench.measurement import Measurement

    if isinstance(recording, Measurement):
        machine = recording.manifest["machine"]
        gpus = [gpu["name"] for gpu in machine.get("gpus", [])]
        return " beside ".join(recording.models), {
            "models": ", ".join(f"{label} ({m['dtype']}, {m['weights']})" for label, m in recording.models.items()),
            "machine": f"{', '.join(gpus) or machine['cpu']}, {machine['threads']} threads",
            "rounds": str(recording.manifest["settings"]["rounds"]),
            "measurement": recording.digest[:16],
        }
    model, corpus = recording.manifest["identity"]["model"], recording.manifest["corpus"]
    facts = {
        "model": model,
        "corpus": f"{corpus['name']}: {recording.n_documents:,} documents, {recording.n_tokens:,} tokens, "
        f"{len(corpus['domains'])} domains",
        "capture check": recording.manifest["check"] if isinstance(recording.manifest["check"], str) else "passed",
        "recording": recording.digest[:16],
    }
    if against is None:
        return f"{model} on {corpus['name']}", facts
    facts |= {"compared with": against.manifest["identity"]["model"], "its recording": against.digest[:16]}
    return f"{model} and {facts['compared with']} on {corpus['name']}", facts


def demo(
    out: Annotated[Path, typer.Option(help="folder of the report")] = Path("report"),
) -> None:
    """Records the bundled corpus with the bundled model and writes a report over every analysis."""
    from analyses import _batch
    from workbench.capture.record import record
    from workbench.models.loading import load

    started = time.perf_counter()
    model = load("tiny-moe", device="cpu")
    with token_progress("recording tiny-moe over demo") as update:
        recording = record(model, "demo", RECORDINGS / "demo", on_progress=update)
    _run(recording, _batch.names(), out, settings=[], width="column", pass_over=True)
    console.print(f"done in {time.perf_counter() - started:.0f} s")
