"""The command `workbench profile`: measures models on this machine into a folder that analyses read."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from workbench.cli.words import Remembered, words_without
from workbench.errors import MeasurementError

if TYPE_CHECKING:
    from workbench.efficiency.measurements.measurement import Measurement


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(cls=Remembered)(profile)


def profile(
    context: typer.Context,
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
    decode: Annotated[
        str, typer.Option(help="how a step is launched: eager, compile, graphs; the first compares")
    ] = "eager",
    prefill_chunk: Annotated[int, typer.Option(help="most tokens of one pass over the prompts; 0: all")] = 0,
    prompts: Annotated[str, typer.Option(help="random, identical, a corpus; auto: demo, or random")] = "auto",
    rounds: Annotated[int, typer.Option(help="timed runs of each model; 6 or more give an interval")] = 9,
    warm_up: Annotated[int, typer.Option(help="most runs before them")] = 4,
    parts: Annotated[bool, typer.Option(help="also time attention, router, experts …")] = True,
    checks: Annotated[
        bool, typer.Option(help="also hold tokens against generate, and kernels against each other")
    ] = True,
    recording_rounds: Annotated[int, typer.Option(help="rounds of recording beside the bare forward pass")] = 0,
    threads: Annotated[int, typer.Option(help="of a CPU; 0: whichever of all and one is faster")] = 0,
    limit: Annotated[float, typer.Option(help="seconds after which nothing new is begun; 0: none")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    seed: Annotated[int, typer.Option(help="of prompts and forced routing")] = 0,
    sequential: Annotated[
        bool, typer.Option(help="the two models one after the other (A, B, A), each in a process of its own")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest as JSON")] = False,
) -> None:
    """Times models in rounds: throughput, latency, parts, kernels, forced routing, memory. Raw samples are kept."""
    from workbench.efficiency.measurements.measurement import refuse_occupied
    from workbench.efficiency.profiling.profile import profile as measure
    from workbench.efficiency.profiling.settings import Asked
    from workbench.models.loading import load

    refuse_occupied(out)
    asked = Asked(
        batches=numbers(batch, "--batch"),
        prompt_lengths=numbers(prompt_length, "--prompt-length"),
        output_lengths=numbers(output_length, "--output-length"),
        routings=words(routing),
        experts=words(experts_implementation) if experts_implementation is not None else None,
        decode=words(decode),
        prompts=prompts,
        prefill_chunk=prefill_chunk,
        rounds=rounds,
        warm_up=warm_up,
        parts=parts,
        checks=checks,
        recording_rounds=recording_rounds,
        threads=threads,
        # of the process: importing and loading count
        limit_s=max(limit - (time.time() - psutil.Process().create_time()), 1.0) if limit else 0.0,
        seed=seed,
    )
    if against is not None and (sequential or not _both_fit(model, against, device=device, dtype=dtype)):
        measured = _one_after_the_other(context, against, out, rounds=rounds, limit_s=limit)
        _tell(measured, out, as_json=as_json)
        return
    how = {"device": device, "dtype": dtype, "weights": weights, "attention": attention}
    loaded = load(model, **how)  # type: ignore[arg-type]  # each key is an argument of its own type
    other = load(against, **how) if against is not None else None  # type: ignore[arg-type]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task(f"measuring {loaded.name}")

        def update(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, description=words)

        command = words_without(context, ("out", "limit"))
        measured = measure(loaded, out, against=other, asked=asked, on_progress=update, command=command)
    _tell(measured, out, as_json=as_json)


def _tell(measured: "Measurement", out: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(measured.manifest, indent=1))
        return
    rows = measured.manifest["tables"]["samples"]["rows"]
    print(f"{rows:,} timed runs in {out}; digest {measured.digest[:16]}")
    for line in measured.manifest["left_out"]:
        print(f"left out: {line}")
    print(f"energy: {measured.manifest['energy']}")
    print(f"next: workbench analyze {out} --all --out report")


def _both_fit(model: str, against: str, *, device: str, dtype: str) -> bool:
    """Whether both models' weights fit into what is free; where each alone does, they are measured in turn."""
    from workbench.models.loading import memory_forecast

    one, other = (memory_forecast(name, device=device, dtype=dtype) for name in (model, against))
    together = one.needed_bytes + other.weights_bytes <= one.free_bytes
    if not together and one.fits and other.fits:
        print(f"{model} and {against} do not fit into memory together, so they are measured one after the other.")
        return False
    return True


def _one_after_the_other(
    context: typer.Context, against: str, out: Path, *, rounds: int, limit_s: float
) -> "Measurement":
    """A, B, A as a programme of three pieces beside the folder; what was stopped goes on."""
    from workbench.efficiency.measurements.measurement import Measurement
    from workbench.efficiency.measurements.programme import Piece, Programme, run_programme

    of_both = ("against", "out", "rounds", "limit", "sequential", "as_json")
    first = words_without(context, of_both)
    other = words_without(
        context, (*of_both, "routing", "experts_implementation"), changed={"model": against}
    )  # kernels and forced routing are the first model's
    asked = {
        "1-first": [*first, "--rounds", str(-(-rounds // 2))],
        "2-other": [*other, "--routing", "natural", "--rounds", str(rounds)],
        "3-first-again": [*first, "--rounds", str(max(rounds // 2, 1))],
    }
    pieces = tuple(Piece(name, tuple(each), limit_s or float("inf")) for name, each in asked.items())
    joins = (("joined", tuple(asked)),)
    beside = out.with_name(f"{out.name}.pieces")
    run_programme(Programme(out.name, pieces, joins), beside, say=lambda line: print(line, file=sys.stderr))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()  # it is empty
    (beside / "joined").rename(out)
    shutil.rmtree(beside)
    return Measurement.open(out)


def numbers(text: str, option: str, *, of: type = int) -> tuple:
    """Numbers with commas between them.

    Raises:
        MeasurementError: one is no number.
    """
    try:
        return tuple(of(word) for word in words(text))
    except ValueError as error:
        raise MeasurementError(f"{option} is {text!r}; numbers with commas were expected, e.g. 1,8,32.") from error


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
