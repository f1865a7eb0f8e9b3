"""`workbench record` and `workbench import`: recordings of a model, and of what another tool wrote."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.console import console, ranges, status, token_progress
from workbench.cli.words import Remembered, words_given
from workbench.errors import RecordingError, TraceError
from workbench.files.writing import refuse_unwritable
from workbench.recordings.fields import FIELDS


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(cls=Remembered)(record)
    app.command(name="import", cls=Remembered)(import_)


def record(
    context: typer.Context,
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
    from workbench.models.loading import load
    from workbench.recordings.corpus import Corpus

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
            command=words_given(context),
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


def import_(
    context: typer.Context,
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
    from workbench.recordings.importers.build import import_trace
    from workbench.recordings.importers.layout import parse_layers
    from workbench.recordings.importers.notes import import_notes

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
            command=words_given(context),
        )
    unit = recording.manifest["source"]["unit"]
    lines = [
        f"{recording.n_tokens:,} tokens of {recording.n_documents:,} {unit} in {out}",
        f"MoE layers {ranges(recording.moe_layers)}; not in the trace: {', '.join(recording.lacks)}",
        *import_notes(recording.manifest),
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
