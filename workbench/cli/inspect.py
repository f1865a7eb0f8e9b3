"""`workbench inspect`, `verify` and `recordings`: what a model is made of, and what a folder holds."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from workbench.cli.console import console, ranges
from workbench.paths import data_folder


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(inspect)
    app.command()(verify)
    app.command()(recordings)


def inspect(
    model: Annotated[str | None, typer.Argument(help="bundled model, folder, published config or hub id")] = None,
    revision: Annotated[str | None, typer.Option(help="of a hub or bundled model")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Shows what a model is made of, from its config alone; without a name, lists the known models."""
    from workbench.models import bundled

    if model is None:
        known = {"bundled": bundled.bundled_models(), "published configs": bundled.published_configs()}
        console.print_json(json.dumps(known))
        return
    from workbench.models import loading

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
        routers.add_row(ranges(layers), *row)
    console.print(routers)


def verify(recording: Annotated[Path, typer.Argument(help="folder of a recording")]) -> None:
    """Reads every byte of a recording or measurement, and checks every digest and whether its values agree."""
    from workbench.efficiency.measurements.measurement import Measurement, is_measurement
    from workbench.recordings.recording import Recording

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


def recordings(
    folder: Annotated[
        Path | None, typer.Argument(help="folder that holds recordings; of the data folder unless given")
    ] = None,
) -> None:
    """Lists the recordings in a folder, the damaged ones too."""
    from workbench.recordings.manifest import recordings_below

    folder = folder or data_folder() / "recordings"
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
