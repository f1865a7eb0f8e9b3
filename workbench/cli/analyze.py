"""`workbench analyze` and `workbench attention-map`: questions asked of recordings, as tables, figures and a report."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from workbench.cli.console import console, status
from workbench.errors import AnalysisError
from workbench.files.writing import refuse_unwritable

if TYPE_CHECKING:
    from analyses import pool
    from analyses.question import Question, Subject
    from workbench.efficiency.costs.comparison import Costed
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
    subject: Annotated[
        str,
        typer.Argument(metavar="RECORDING", help="folder of a recording or of a measurement; for costs, a model"),
    ],
    names: Annotated[list[str] | None, typer.Argument(help="analyses; --all for every one")] = None,
    out: Annotated[Path, typer.Option(help="folder for tables and figures")] = Path("out"),
    all_: Annotated[bool, typer.Option("--all", help="every analysis")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, for one analysis")] = None,
    width: Annotated[str, typer.Option(help="of figures: column (3.25 in) or text (6.75 in)")] = "column",
    phase: Annotated[str | None, typer.Option(help="prefill or decode, of a recording that holds both")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="a second recording of the same corpus to compare with; for costs a model, iso-active, iso-total or "
            "iso-memory"
        ),
    ] = None,
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
    from analyses import catalogue
    from analyses.question import Question
    from analyses.settings import parse_settings
    from workbench.recordings.recording import Recording
    from workbench.recordings.schema import MANIFEST

    named = list(dict.fromkeys(names or []))
    if not named and not all_:
        raise AnalysisError(f"name an analysis, or give --all; there are {', '.join(catalogue.names())}.")
    refuse_unwritable(out, AnalysisError)
    many = all_ or len(named) != 1
    _refuse_many(
        many=many,
        count="all" if all_ else str(len(named)),
        options={"--set": settings, "--only": only, "--label": label},
    )
    for name in named:
        parse_settings(catalogue.get(name), settings or [])  # refused before anything is opened
    if width not in ("column", "text"):
        raise AnalysisError(f"--width is {width!r}; column or text was expected.")
    if jobs is not None and not 1 <= jobs <= _MOST_JOBS:
        raise AnalysisError(f"--jobs is {jobs}; 1 to {_MOST_JOBS} was expected.")
    if against is None and experts != "auto":
        raise AnalysisError("--experts is about two recordings; give the other one: --against RECORDING.")
    if against is not None and untrained is not None:
        raise AnalysisError(
            "--untrained is a control of one recording; leave it out, or compare with the untrained model itself: "
            f"--against {untrained}."
        )
    of_costs = bool(named) and all(catalogue.input_of(name) == "costs" for name in named)
    of_costs = of_costs and not (Path(subject) / MANIFEST).is_file()  # of a recording the question says what it is not
    controls = {"ceiling": ceiling, "untrained": untrained}
    opened, other = _costs_of(subject, against) if of_costs else _recordings(subject, against)
    known = catalogue.names(*_inputs_of(opened))
    if all_:
        others = ", ".join(name for name in catalogue.names() if name not in known)
        console.print(f"passed over, for they are asked of something else: {others}", soft_wrap=True)
    chosen = known if all_ else named
    _refuse_controls(controls, chosen, known)
    if phase is not None:
        if not isinstance(opened, Recording):
            raise AnalysisError(f"--phase is about recordings, and {subject} holds none; leave it out.")
        opened = opened.of_phase(phase)
    shared: dict[str, Any] = {"against": other, "experts": experts, "width": cast("Width", width), "label": label}
    questions = [
        Question(
            opened, name, _with_controls(name, settings or [], controls, of_two=other is not None),
            only=tuple(only or ()), **shared,
        )
        for name in chosen
    ]  # fmt: skip
    run_all(questions, out, jobs=jobs)


def _recordings(subject: str, against: str | None) -> "tuple[Recording | Measurement, Recording | None]":
    from analyses.question import open_input, open_recording

    return open_input(Path(subject)), open_recording(Path(against)) if against is not None else None


def _costs_of(model: str, against: str | None) -> "tuple[Costed, None]":
    from workbench.efficiency.costs.comparison import costed, with_published

    return with_published(costed(model, against or "iso-active")), None


def _inputs_of(subject: "Subject") -> tuple[str, ...]:
    from analyses.question import kind_of

    kind = kind_of(subject)
    return ("recording", "two recordings") if kind == "recording" else (kind,)


def _with_controls(
    name: str, settings: Sequence[str], controls: Mapping[str, Path | None], *, of_two: bool
) -> tuple[str, ...]:
    """The settings with the recordings that an analysis takes as controls, those of them that it has.

    Where two recordings are compared, a control belongs to an analysis of two alone.
    """
    from analyses import catalogue

    takes = {field.name for field in fields(catalogue.get(name).Settings)}
    if of_two and catalogue.input_of(name) != "two recordings":
        takes = set()
    return (*settings, *(f"{key}={path}" for key, path in controls.items() if path is not None and key in takes))


def _refuse_controls(controls: Mapping[str, Path | None], chosen: Sequence[str], known: Sequence[str]) -> None:
    """Refuses a control that no analysis takes."""
    from analyses import catalogue

    for control, path in controls.items():
        if path is not None and not any(hasattr(catalogue.get(name).Settings, control) for name in chosen):
            takers = ", ".join(name for name in known if hasattr(catalogue.get(name).Settings, control))
            raise AnalysisError(f"no analysis that was named takes --{control}; these do: {takers}.")


def _refuse_many(*, many: bool, count: str, options: dict[str, Any]) -> None:
    """Refuses options of one analysis where several are asked."""
    for option, given in options.items():
        if given and many:
            raise AnalysisError(f"{option} belongs to one analysis, and {count} were named; run them one by one.")


def run_all(questions: "Sequence[Question]", out: Path, *, jobs: int | None = None) -> Path:
    """Answers questions about one subject; those that refuse it are named and left out, unless all do."""
    from analyses import pool
    from workbench.export.bundle import finish
    from workbench.export.files import sweep
    from workbench.export.html import write_report

    sweep(out)
    names = [question.analysis for question in questions]
    done: dict[str, pool.Done] = {}
    with status("analyzing …") as line:
        for one in pool.run(questions, out, n_processes=jobs or pool.processes(questions)):
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
    title, facts = _facts(questions[0].of, questions[0].against)
    left_out = [done[name].refused for name in names if done[name].refused]
    write_report(page, title=title, facts=facts, sections=sections, left_out=left_out)
    console.print(f"report: {page}", soft_wrap=True)
    return page


def _facts(recording: "Subject", against: "Recording | None") -> tuple[str, dict[str, str]]:
    """Title and facts of a report."""
    from workbench.efficiency.costs.comparison import Costed
    from workbench.efficiency.measurements.measurement import Measurement

    if isinstance(recording, Costed):
        return f"Costs of {recording.words}", {"model": recording.name, "against": recording.against}
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
    from analyses import catalogue
    from workbench.export.html import Section

    said = f"Not shown: {' '.join(catalogue.not_shown(done.name).split())}"
    return Section(done.name, catalogue.asks(done.name), said, done.figures, done.files)


def attention_map(
    recording: Annotated[Path, typer.Argument(help="folder of a recording, whose model is run again")],
    document: Annotated[str, typer.Option(help="id of a recorded document")],
    layer: Annotated[int, typer.Option(help="attention layer")],
    head: Annotated[int, typer.Option(help="head")],
    tokens: Annotated[int, typer.Option(help="of the document's beginning, at most 2,048")] = 128,
    out: Annotated[Path, typer.Option(help="folder for table and figure")] = Path("out"),
) -> None:
    """Draws the attention weights of one head on one recorded text."""
    from analyses import head_map
    from workbench.capture.attention.heads import MOST_MAPPED
    from workbench.capture.attention.heads import attention_map as weights_of
    from workbench.export.bundle import finish
    from workbench.export.files import write_result
    from workbench.models.loading import load
    from workbench.recordings.recording import Recording

    refuse_unwritable(out, AnalysisError)
    opened = Recording.open(recording)
    name = opened.manifest["identity"]["model"]
    text = head_map.text_of(opened, document, n_tokens=tokens)
    head_map.refuse_unknown(opened, text, layer=layer, head=head, most=MOST_MAPPED)
    table = head_map.cells(
        weights_of(load(name, dtype=opened.manifest["model"]["dtype"]), text.token_ids, layer=layer, head=head),
        text.texts,
    )
    drawn = head_map.figure(table, layer=layer, head=head, model=name, text=text)
    asked = head_map.HeadMap(opened, document, layer, head, tokens)
    files = write_result({"weights": table}, {"map": drawn}, out / "attention-map", provenance=asked.provenance)
    for file in [*files, *finish(out)]:
        console.print(str(file), soft_wrap=True)
