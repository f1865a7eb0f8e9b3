"""The `workbench` command: record, inspect, verify, list. Analyses add their own commands through an entry point.

Every command is a thin layer over a public function of the same name; errors of the user's making are one sentence.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from workbench import ending
from workbench.errors import RecordingError, TraceError
from workbench.recording_schema import FIELDS
from workbench.writable import refuse_unwritable

COMMANDS = (
    "workbench.efficiency.profile_command",
    "workbench.efficiency.programme_command",
    "workbench.efficiency.serve_command",
)
"""Modules of the engine that add commands, each with a `register`."""
RECORDINGS = Path(__file__).resolve().parent.parent / "data" / "recordings"

app = typer.Typer(
    name="workbench",
    help="Record what a Mixture-of-Experts model does, prove it, analyse it, print it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Names, paths and errors are other people's texts: a bracket or a colon in them is a bracket or a colon.
console = Console(markup=False, emoji=False)
error_console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
_RESUMES = "What was written before is whole: run the same command again, it resumes where it stopped."
STAYS = {
    "record": _RESUMES,
    "import": _RESUMES,
    "demo": _RESUMES,
    "programme": "The pieces that were done stay: run the same command again, it resumes with the next.",
    "analyze": "Analyses that were done are whole in --out; of the others nothing was written.",
    "profile": "Nothing of the measurement was written.",
    "serve-bench": "Nothing of the measurement was written.",
}
"""What an interrupted command leaves behind, by name."""


@contextmanager
def token_progress(description: str, *, quiet: bool = False) -> Iterator:
    """A progress bar with tokens/s and time left; yields the callback that `record` takes."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=error_console, disable=quiet) as bar:
        task = bar.add_task(description, total=0, rate=0.0, visible=False)  # shown once the total is known

        def update(progress) -> None:
            bar.update(
                task,
                visible=True,
                completed=progress.done_tokens,
                total=progress.total_tokens,
                rate=progress.tokens_per_s,
            )

        yield update


def status(words: str) -> Status:
    """A line that says what is being done, while it is."""
    return console.status(Text(words))


@app.command()
def record(
    model: Annotated[str, typer.Argument(help="bundled model, local folder, or hub id")],
    corpus: Annotated[str, typer.Option(help="JSONL, Parquet or text file, or a bundled corpus (demo)")],
    out: Annotated[Path, typer.Option(help="folder of the recording")],
    fields: Annotated[str, typer.Option(help=f"of {', '.join(FIELDS)}")] = "routing,logprob",
    max_tokens: Annotated[int | None, typer.Option(help="cap, by whole documents from the domains in turn")] = None,
    batch_tokens: Annotated[int, typer.Option(help="padded positions of a batch")] = 4096,
    shard_tokens: Annotated[int, typer.Option(help="tokens of a part on disk")] = 65_536,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    revision: Annotated[str | None, typer.Option(help="of a hub or bundled model")] = None,
    weights: Annotated[str, typer.Option(help="checkpoint, or dummy for random ones")] = "checkpoint",
    attention: Annotated[str | None, typer.Option(help="eager, sdpa, flex_attention; else transformers' own")] = None,
    check: Annotated[bool, typer.Option(help="prove the capture before recording")] = True,
    generate: Annotated[int | None, typer.Option(help="tokens the model writes behind each text, recorded too")] = None,
    temperature: Annotated[float, typer.Option(help="of the writing; 0 takes the most probable token")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the writing, where the temperature is not 0")] = 0,
    parent: Annotated[str | None, typer.Option(help="dense model it was made from, for the field weights")] = None,
) -> None:
    """Records a model over a corpus; a run that was stopped goes on where it stopped."""
    from workbench.capture.generate import Generation
    from workbench.capture.record import record as run
    from workbench.corpus import Corpus
    from workbench.models.loading import load

    refuse_unwritable(out, RecordingError)
    documents = Corpus.read(corpus)
    generation = Generation(generate, temperature, seed) if generate is not None else None
    with status(f"loading {model}"):
        loaded = load(model, device=device, dtype=dtype, revision=revision, weights=weights, attention=attention)
        dense = load(parent, device=device, dtype=dtype) if parent is not None else None
    for remark in loaded.checkpoint.remarks() if loaded.checkpoint is not None else ():
        console.print(f"{loaded.name}: {remark}.", soft_wrap=True, markup=False, highlight=False)
    with token_progress(f"recording {loaded.name}") as update:
        recording = run(
            loaded,
            documents,
            out,
            fields=tuple(field.strip() for field in fields.split(",") if field.strip()),
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
            shard_tokens=shard_tokens,
            generation=generation,
            parent=dense,
            check=check,
            on_progress=update,
        )
    cut = recording.manifest["corpus"]["documents_cut"]
    left_out = recording.manifest["corpus"]["documents_left_out"]
    console.print(f"{recording.n_tokens:,} tokens of {recording.n_documents:,} documents in {out}", soft_wrap=True)
    if cut or left_out:
        console.print(f"cut to fit: {cut:,} documents; left out by --max-tokens: {left_out:,}")
    if marked := recording.manifest["tokenizer"].get("marks_not_doubled"):
        console.print(f"texts that bring the tokenizer's own marks, which were not added again: {marked:,}")
    if not recording.moe_layers:
        console.print("this model has no MoE layer: only log-probabilities were recorded")


@app.command()
def inspect(
    model: Annotated[str | None, typer.Argument(help="bundled model, folder, published config or hub id")] = None,
    revision: Annotated[str | None, typer.Option(help="of a hub or bundled model")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Shows what a model is made of, from its config alone; without a name, lists the known models."""
    from workbench.models import bundled, loading

    if model is None:
        known = {"bundled": bundled.bundled_models(), "published configs": bundled.published_configs()}
        console.print_json(json.dumps(known))
        return
    found = loading.inspect(model, revision=revision)
    topology, forecast = found.topology, found.forecast
    if as_json:
        print(json.dumps({**topology.to_json(), "quantization": found.quantization}, indent=1))
        return
    table = Table("", "", show_header=False, title=f"{model} ({topology.family})")
    for name, value in (
        ("decoder layers", f"{topology.n_layers}"),
        ("model width", f"{topology.width:,}"),
        ("vocabulary", f"{topology.vocabulary:,}"),
        ("attention heads / key-value groups", f"{topology.n_heads} / {topology.n_kv_groups}"),
        ("context", f"{topology.context:,}" if topology.context else "not stated"),
        ("parameters, total", f"{topology.parameters_total:,}"),
        ("parameters, active per token", f"{topology.parameters_active:,}"),
        ("weights on disk", f"quantized ({found.quantization})" if found.quantization else "not quantized"),
        ("memory for weights and buffers", f"{forecast.needed_bytes / 2**30:.2f} GiB on {forecast.device}"),
        ("free", f"{forecast.free_bytes / 2**30:.2f} GiB"),
    ):
        table.add_row(name, value)
    console.print(table)
    if not topology.routers:
        console.print("no MoE layer: routing analyses have nothing to show for this model")
        return
    routers = Table("layers", "site", "experts", "rule of choice and weights", "expert width", "shared width")
    layers_of: dict[tuple[str, ...], list[int]] = {}
    for router in topology.routers:
        shared = f"{router.shared_width:,}{' gated' if router.shared_gate else ''}" if router.shared_width else "–"
        row: tuple[str, ...] = (
            router.site, str(router.n_experts), router.rule, f"{router.expert_width:,}", shared,
        )  # fmt: skip
        layers_of.setdefault(row, []).append(router.layer)
    for row, layers in layers_of.items():
        routers.add_row(_ranges(layers), *row)
    console.print(routers)


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as ranges: 0–3, 5, 7–9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


@app.command(name="import")
def import_(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="sglang, routed-experts, olmoe, numpy or parquet")],
    path: Annotated[Path, typer.Argument(help="the trace: a file, or a folder of files")],
    out: Annotated[Path, typer.Option(help="folder of the recording")],
    layers: Annotated[str | None, typer.Option(help="decoder layers of the trace's columns, e.g. 1-27")] = None,
    model: Annotated[
        str | None, typer.Option(help="whose config says layers, experts and k (no weight is read)")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="routed experts of a layer")] = None,
    top_k: Annotated[int | None, typer.Option(help="experts of a token, for traces of counts")] = None,
    ranks: Annotated[int, typer.Option(help="ranks that counted the same tokens, for traces of counts")] = 1,
    ranked: Annotated[bool, typer.Option("--ranked", help="a token's ids stand in the order of their scores")] = False,
    documents: Annotated[
        Path | None,
        typer.Option(
            help="JSONL: id, domain, cluster, token_ids, prompt_tokens, start … of each; joined by id or order"
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="model or folder whose tokenizer gives ids their text")] = None,
    phase: Annotated[str | None, typer.Option(help="prefill or decode: take these tokens, or say that all are")] = None,
    mask_zero_rows: Annotated[
        bool, typer.Option("--mask-zero-rows", help="leave out rows that are expert 0 in every layer")
    ] = False,
    shard_tokens: Annotated[int, typer.Option(help="tokens of a part on disk")] = 65_536,
) -> None:
    """Makes a recording of a routing trace that another tool wrote; what the trace lacks is not in it."""
    from workbench.importers.build import import_trace
    from workbench.importers.layout import parse_layers
    from workbench.importers.notes import import_notes

    refuse_unwritable(out, TraceError)
    with status(f"importing {path}"):
        recording = import_trace(
            kind,
            path,
            out,
            layers=parse_layers(layers) if layers is not None else None,
            model=model,
            n_experts=experts,
            top_k=top_k,
            ranks=ranks,
            ids_ranked=ranked,
            documents=documents,
            tokenizer=tokenizer,
            phase=phase,
            mask_zero_rows=mask_zero_rows,
            shard_tokens=shard_tokens,
        )
    unit = recording.manifest["source"]["unit"]
    lines = [
        f"{recording.n_tokens:,} tokens of {recording.n_documents:,} {unit} in {out}",
        f"MoE layers {_ranges(list(recording.moe_layers))}; not in the trace: {', '.join(recording.lacks)}",
        *import_notes(recording.manifest),
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


@app.command()
def verify(recording: Annotated[Path, typer.Argument(help="folder of a recording")]) -> None:
    """Reads every byte of a recording or measurement, and checks every digest and whether its values agree."""
    from workbench.measurement import Measurement, is_measurement
    from workbench.recording import Recording

    if is_measurement(recording):
        measurement = Measurement.open(recording)
        console.print(
            f"{recording}: {measurement.verify()} tables, as written. digest {measurement.digest}", soft_wrap=True
        )
        return
    result = Recording.open(recording).verify(values=True)
    console.print(
        f"{recording}: {result.files} files, {result.size_bytes:,} bytes, as written. digest {result.digest}",
        soft_wrap=True,
    )


@app.command()
def recordings(
    folder: Annotated[Path, typer.Argument(help="folder that holds recordings")] = RECORDINGS,
) -> None:
    """Lists the recordings in a folder, the damaged ones too."""
    from workbench.recording import recordings_below

    table = Table("folder", "model", "corpus", "tokens", "fields", "state")
    for found in recordings_below(folder):
        if found.damage:
            table.add_row(str(found.path), "–", "–", "–", "–", f"damaged: {found.damage}")
            continue
        manifest = found.manifest
        tokens = sum(part["tokens"]["rows"] for part in manifest.get("parts", []))
        table.add_row(
            str(found.path), manifest["identity"]["model"], manifest["corpus"]["name"],
            f"{tokens:,}" if tokens else "–", ",".join(manifest["fields"]), manifest["status"],
        )  # fmt: skip
    console.print(table if table.row_count else f"no recordings in {folder}")


def main() -> None:
    """Runs the command; whatever ends it is said in one sentence (`ending.py`)."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    ending.run(_command, say=_say_error, stays=STAYS.get(name, ""))


def _command() -> None:
    """Adds the commands of the other modules, and runs the one that was asked for."""
    for module in COMMANDS:
        import_module(module).register(app)
    for plugin in entry_points(group="moe_workbench.commands"):
        plugin.load()(app)
    command = typer.main.get_command(app)
    for each in (command, *getattr(command, "commands", {}).values()):
        _keep_brackets(each)
    command()


def _keep_brackets(command: Any) -> None:
    """Escapes what rich would take for markup in a command's help: `[auth]` is a word."""
    command.help = escape(command.help or "")
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = escape(parameter.help)


def _say_error(sentence: str) -> None:
    error_console.print(f"workbench: {sentence}", style="red", highlight=False)


if __name__ == "__main__":
    main()
