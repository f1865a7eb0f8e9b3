"""The command `workbench profile`: measures models on this machine into a folder that analyses read."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from workbench.errors import MeasurementError


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(profile)


def profile(
    model: Annotated[str, typer.Argument(help="bundled model, local folder, published config, or hub id")],
    out: Annotated[Path, typer.Option(help="folder of the measurement, new or empty")],
    against: Annotated[str | None, typer.Option(help="a model to measure beside it, round by round")] = None,
    weights: Annotated[str, typer.Option(help="checkpoint, or dummy for random ones")] = "checkpoint",
    batch: Annotated[str, typer.Option(help="prompts at once, e.g. 1,16")] = "1,16",
    prompt_length: Annotated[str, typer.Option(help="tokens of a prompt, e.g. 128,1024")] = "64",
    output_length: Annotated[str, typer.Option(help="new tokens of each, e.g. 32")] = "16",
    experts_implementation: Annotated[
        str | None, typer.Option(help="how experts run, e.g. grouped_mm,eager; else all that work here")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="eager, sdpa, flex_attention; else transformers' own")] = None,
    routing: Annotated[
        str, typer.Option(help="natural, uniform, round-robin, zipf:ALPHA, worst, replay:RECORDING; the first compares")
    ] = "natural,uniform,worst",
    prompts: Annotated[str, typer.Option(help="random, identical, a corpus; auto: demo, or random")] = "auto",
    rounds: Annotated[int, typer.Option(help="timed runs of each model; 6 or more give an interval")] = 9,
    warm_up: Annotated[int, typer.Option(help="most runs before them")] = 4,
    parts: Annotated[bool, typer.Option(help="also time attention, router, experts …")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    seed: Annotated[int, typer.Option(help="of prompts and forced routing")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest as JSON")] = False,
) -> None:
    """Times models in rounds: throughput, latency, parts, kernels, forced routing, memory. Raw samples are kept."""
    from workbench.efficiency.measure import Asked
    from workbench.efficiency.measure import profile as measure
    from workbench.measurement import refuse_occupied
    from workbench.models.loading import load

    refuse_occupied(out)
    asked = Asked(
        batches=numbers(batch, "--batch"),
        prompt_lengths=numbers(prompt_length, "--prompt-length"),
        output_lengths=numbers(output_length, "--output-length"),
        routings=words(routing),
        experts=words(experts_implementation) if experts_implementation is not None else None,
        prompts=prompts,
        rounds=rounds,
        warm_up=warm_up,
        parts=parts,
        seed=seed,
    )
    how = {"device": device, "dtype": dtype, "weights": weights, "attention": attention}
    loaded = load(model, **how)  # type: ignore[arg-type]  # each key is an argument of its own type
    other = load(against, **how) if against is not None else None  # type: ignore[arg-type]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task(f"measuring {loaded.name}")

        def update(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, description=words)

        measured = measure(loaded, out, against=other, asked=asked, on_progress=update)
    if as_json:
        print(json.dumps(measured.manifest, indent=1))
        return
    rows = measured.manifest["tables"]["samples"]["rows"]
    print(f"{rows:,} timed runs in {out}; digest {measured.digest[:16]}")
    for line in measured.manifest["left_out"]:
        print(f"left out: {line}")
    print(f"energy: {measured.manifest['energy']}")
    print(f"next: workbench analyze {out} --all --out report")


def numbers(text: str, option: str, *, of: type = int) -> tuple:
    """Numbers with commas between them.

    Raises:
        MeasurementError: one is no number.
    """
    try:
        return tuple(of(word) for word in words(text))
    except ValueError as error:
        raise MeasurementError(f"{option} is {text!r}; numbers with commas were wanted, e.g. 1,8,32.") from error


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
