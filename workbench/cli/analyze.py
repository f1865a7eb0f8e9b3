"""`workbench analyze` and `workbench attention-map`: questions asked of recordings, as tables, figures and a report."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from workbench.cli.console import console, status
from workbench.errors import AnalysisError
from workbench.files.writing import refuse_unwritable

if TYPE_CHECKING:
    from analyses import pool
    from workbench.efficiency.measurements.measurement import Measurement
    from workbench.export.html import Section
    from workbench.figures.theme import Width
    from workbench.recordings.recording import Recording

_MOST_JOBS = 256


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(analyze)
    app.command(name="attention-map")(attention_map)


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
    untrained: Annotated[Path | None, typer.Option(help="the untrained model over the same corpus")] = None,
    experts: Annotated[str, typer.Option(help="same, matched or auto: whether equal ids are equal experts")] = "auto",
    only: Annotated[list[str] | None, typer.Option(help="a figure or table of one analysis; repeat for more")] = None,
    label: Annotated[str, typer.Option(help="name of the folder in --out, for one analysis; else the analysis'")] = "",
    jobs: Annotated[int | None, typer.Option(help="processes; as the recording's size and the cores allow")] = None,
) -> None:
    """Runs analyses of a recording, or of two, and writes their tables and figures, with a page that shows them all.

    Of several analyses those that cannot be asked of the recording are left out, with the reason; the others run. The
    exit status is 0 if at least one ran.
    """
    from analyses import pool, question
    from workbench.recordings.recording import Recording

    named = list(dict.fromkeys(names or []))
    if not named and not all_:
        raise AnalysisError(f"name an analysis, or give --all; there are {', '.join(question.names(''))}.")
    refuse_unwritable(out, AnalysisError)
    _refuse_many(
        many=all_ or len(named) != 1,
        count="all" if all_ else str(len(named)),
        options={
            "--set": settings,
            "--only": only,
            "--label": label,
        },
    )
    for name in named:
        question.parse_settings(question.get(name), settings or [])  # refused before anything is run
    if width not in ("column", "text"):
        raise AnalysisError(f"--width is {width!r}; column or text was expected.")
    if against is None and experts != "auto":
        raise AnalysisError("--experts is about two recordings; give the other one: --against RECORDING.")
    if against is not None and untrained is not None:
        raise AnalysisError(
            "--untrained is a control of one recording; leave it out, or compare with the untrained model itself: "
            f"--against {untrained}."
        )
    if jobs is not None and not 1 <= jobs <= _MOST_JOBS:
        raise AnalysisError(f"--jobs is {jobs}; 1 to {_MOST_JOBS} was expected.")
    opened = question.open_input(recording)
    known = question.names(question.kind(opened))
    if all_:
        others = ", ".join(name for name in question.names("") if name not in known)
        console.print(f"passed over, for they are asked of something else: {others}", soft_wrap=True)
    chosen = known if all_ else named
    if phase is not None:
        if not isinstance(opened, Recording):
            raise AnalysisError(f"--phase is about recordings, and {recording} holds a measurement; leave it out.")
        opened = opened.of_phase(phase)
    for control, path in (("ceiling", ceiling), ("untrained", untrained)):
        if path is not None and not any(hasattr(question.get(name).Settings, control) for name in chosen):
            takers = ", ".join(name for name in known if hasattr(question.get(name).Settings, control))
            raise AnalysisError(f"no analysis that was named takes --{control}; these do: {takers}.")
    asked = pool.Asked(
        opened,
        out,
        settings={
            name: question.with_controls(
                question.get(name), settings or [], ceiling=ceiling, untrained=untrained, of_two=against is not None
            )
            for name in chosen
        },
        width=cast("Width", width),
        against=question.open_recording(against) if against is not None else None,
        experts=experts,
        only=only or (),
        label=question.named(label) if label else "",
    )
    run_all(asked, chosen, jobs=jobs)


def _refuse_many(*, many: bool, count: str, options: dict[str, Any]) -> None:
    """Refuses options of one analysis where several are asked."""
    for option, given in options.items():
        if given and many:
            raise AnalysisError(f"{option} belongs to one analysis, and {count} were named; run them one by one.")


def run_all(asked: "pool.Asked", names: list[str], *, jobs: int | None = None) -> Path:
    """Runs the analyses; those that refuse the recording are named and left out, unless all do."""
    from analyses import pool
    from workbench.export.bundle import finish
    from workbench.export.files import sweep
    from workbench.export.html import write_report

    sweep(asked.out)
    recording, against, out = asked.recording, asked.against, asked.out
    done: dict[str, pool.Done] = {}
    with status("analyzing …") as line:
        for one in pool.run(asked, names, n_processes=jobs or pool.processes(recording, names)):
            if one.refused and len(names) == 1:
                raise AnalysisError(one.refused)
            said = f"left out: {one.refused}" if one.refused else f"{one.name}: {len(one.files)} files"
            console.print(said if one.refused else f"{said} in {one.seconds:.1f} s", soft_wrap=True)
            done[one.name] = one
            line.update(f"{len(done)} of {len(names)} analyses done …")
    answered = [name for name in names if not done[name].refused]
    if not answered:
        raise AnalysisError(f"none of {len(names)} analyses could be asked; the last said: {done[names[-1]].refused}")
    sections = [_section(done[name]) for name in answered]
    finish(out)
    page = out / "index.html"
    title, facts = _facts(recording, against)
    left_out = [done[name].refused for name in names if done[name].refused]
    write_report(page, title=title, facts=facts, sections=sections, left_out=left_out)
    console.print(f"report: {page}", soft_wrap=True)
    return page


def _facts(recording: "Recording | Measurement", against: "Recording | None") -> tuple[str, dict[str, str]]:
    """Title and facts of a report."""
    from workbench.efficiency.measurements.measurement import Measurement

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


def _section(done: "pool.Done") -> "Section":
    from analyses import question
    from workbench.export.html import Section

    asks, _, rest = (inspect.getdoc(question.get(done.name)) or "").partition("\n\n")
    return Section(done.name, asks, " ".join(rest.split()), done.figures, done.files)


def attention_map(
    recording: Annotated[Path, typer.Argument(help="folder of a recording, whose model is run again")],
    document: Annotated[str, typer.Option(help="id of a recorded document")],
    layer: Annotated[int, typer.Option(help="attention layer")],
    head: Annotated[int, typer.Option(help="head")],
    tokens: Annotated[int, typer.Option(help="of the document's beginning, at most 2,048")] = 128,
    out: Annotated[Path, typer.Option(help="folder for table and figure")] = Path("out"),
) -> None:
    """Draws the attention weights of one head on one recorded text."""
    from analyses import question
    from analyses.attention import _map
    from workbench.capture.attention.heads import MOST_MAPPED
    from workbench.capture.attention.heads import attention_map as weights_of
    from workbench.export.bundle import finish
    from workbench.export.files import Provenance, write_result
    from workbench.models.loading import load
    from workbench.recordings.recording import Recording

    refuse_unwritable(out, AnalysisError)
    opened = Recording.open(recording)
    name = opened.manifest["identity"]["model"]
    text = _map.text_of(opened, document, n_tokens=tokens)
    _map.refuse_unknown(opened, text, layer=layer, head=head, most=MOST_MAPPED)
    table = _map.cells(
        weights_of(load(name, dtype=opened.manifest["model"]["dtype"]), text.token_ids, layer=layer, head=head),
        text.texts,
    )
    drawn = _map.figure(table, layer=layer, head=head, model=name, text=text)
    provenance = Provenance(
        analysis="attention-map",
        command=_map.command(opened, document=document, layer=layer, head=head, tokens=tokens),
        sources=question.sources(opened),
        settings={"document": document, "layer": layer, "head": head, "tokens": tokens},
    )
    files = write_result({"weights": table}, {"map": drawn}, out / "attention-map", provenance=provenance)
    for file in [*files, *finish(out)]:
        console.print(str(file), soft_wrap=True)
