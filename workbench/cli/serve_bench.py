"""The command `workbench serve-bench`: measures two served models into a folder that analyses read."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from workbench.cli.profile import numbers, words
from workbench.errors import MeasurementError

PAIR = ("tiny-moe", "tiny-dense")
SMOKE: dict[str, Any] = {
    "concurrencies": (1, 4), "rates": (4.0,), "prompt_lengths": (32,), "output_lengths": (8,), "requests": 4,
    "rounds": 6,
}  # fmt: skip
"""What `--launch` measures unless told otherwise: the whole path in three minutes on two cores."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="serve-bench")(serve_bench)


def serve_bench(
    out: Annotated[Path, typer.Option(help="folder of the measurement, new or empty")],
    moe: Annotated[str, typer.Option(help="URL of the MoE's server; with --launch a bundled model or a folder")] = "",
    dense: Annotated[str, typer.Option(help="URL of the other server; likewise")] = "",
    launch: Annotated[bool, typer.Option("--launch", help="start two `transformers serve` here, for a trial")] = False,
    moe_model: Annotated[str, typer.Option(help="what the server calls its model; else it is asked")] = "",
    dense_model: Annotated[str, typer.Option(help="likewise")] = "",
    moe_name: Annotated[str, typer.Option(help="name in tables and figures; else the model's")] = "",
    dense_name: Annotated[str, typer.Option(help="likewise")] = "",
    moe_tokenizer: Annotated[str, typer.Option(help="folder or hub id to cut prompts with; else the model's")] = "",
    dense_tokenizer: Annotated[str, typer.Option(help="likewise")] = "",
    prompts: Annotated[str, typer.Option(help="identical, unique, or both")] = "identical,unique",
    concurrency: Annotated[str | None, typer.Option(help="requests in flight, e.g. 1,8,32")] = None,
    rate: Annotated[str | None, typer.Option(help="requests per second that come at random, e.g. 2,4")] = None,
    prompt_length: Annotated[str | None, typer.Option(help="tokens of a prompt, e.g. 1000")] = None,
    output_length: Annotated[str | None, typer.Option(help="tokens of an answer, e.g. 100")] = None,
    requests: Annotated[int | None, typer.Option(help="of a run; at least twice the concurrency")] = None,
    rounds: Annotated[int | None, typer.Option(help="runs of each model; 6 or more give an interval")] = None,
    corpus: Annotated[str, typer.Option(help="where prompts are cut from")] = "demo",
    timeout: Annotated[float, typer.Option(help="seconds without a byte, until a request is given up")] = 60.0,
    limit: Annotated[float, typer.Option(help="seconds until a run is ended")] = 600.0,
    seed: Annotated[int, typer.Option(help="of prompts and arrivals")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest as JSON")] = False,
) -> None:
    """Times two served models in rounds: throughput and latency by concurrency and rate. Every request is kept."""
    from workbench.efficiency.measurements.measurement import refuse_occupied
    from workbench.efficiency.serving.benchmark import Served
    from workbench.efficiency.serving.benchmark import serve_bench as measure
    from workbench.efficiency.serving.endpoints import reach
    from workbench.efficiency.serving.guidellm import require_guidellm
    from workbench.efficiency.serving.local_servers import launched

    refuse_occupied(out)
    require_guidellm()
    if not launch and not (moe and dense):
        raise MeasurementError(
            "serve-bench compares two servers: give --moe URL and --dense URL, or --launch to start two here."
        )
    given: dict[str, Any] = {
        "concurrencies": numbers(concurrency, "--concurrency") if concurrency is not None else None,
        "rates": numbers(rate, "--rate", of=float) if rate is not None else None,
        "prompt_lengths": numbers(prompt_length, "--prompt-length") if prompt_length is not None else None,
        "output_lengths": numbers(output_length, "--output-length") if output_length is not None else None,
        "requests": requests,
        "rounds": rounds,
    }
    chosen = (SMOKE if launch else {}) | {name: value for name, value in given.items() if value is not None}
    asked = Served(prompts=words(prompts), corpus=corpus, timeout_s=timeout, limit_s=limit, seed=seed, **chosen)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), disable=as_json))
        task = bar.add_task("starting both servers" if launch else "looking at both servers", total=None)
        sides: list[dict[str, str]] = [
            {"url": moe, "model": moe_model, "label": moe_name, "tokenizer": moe_tokenizer},
            {"url": dense, "model": dense_model, "label": dense_name, "tokenizer": dense_tokenizer},
        ]
        how: dict[str, Any] = {}
        if launch:
            servers = stack.enter_context(launched([moe or PAIR[0], dense or PAIR[1]]))
            for side, server in zip(sides, servers, strict=True):
                side |= {"url": server.url, "model": server.folder, "label": side["label"] or Path(server.name).name}
                how = server.how
        first, second = (
            reach(timeout_s=timeout, option=option, **side)
            for option, side in zip(("--moe", "--dense"), sides, strict=True)
        )

        def update(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        measured = measure(first, second, out, asked=asked, on_progress=update, launched=how)
    if as_json:
        print(json.dumps(measured.manifest, indent=1))
        return
    table = measured.table("requests")
    print(f"{len(table):,} requests in {out}; digest {measured.digest[:16]}")
    for label, rows in table.groupby("model", sort=False):
        counted = Counter(rows["outcome"])
        print(f"{label}: {', '.join(f'{n:,} {outcome}' for outcome, n in counted.most_common())}")
    for line in measured.manifest["left_out"]:
        print(f"left out: {line}")
    print(f"next: workbench analyze {out} served --out report")
