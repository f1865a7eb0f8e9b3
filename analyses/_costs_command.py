"""`workbench costs`: what a model costs by its config, beside a dense one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import console

if TYPE_CHECKING:
    import numpy as np

    from workbench.models.topology import Topology


def costs(
    model: Annotated[str, typer.Argument(help="bundled model, folder, published config or hub id; no weight is read")],
    against: Annotated[str, typer.Option(help="iso-active, iso-total, iso-memory, or a model")] = "",
    batch: Annotated[int, typer.Option(help="sequences decoded together")] = 1,
    context: Annotated[int, typer.Option(help="tokens of each: in the cache, and of the prefill")] = 1024,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float8, int4")] = "bfloat16",
    device: Annotated[str, typer.Option(help="a100-80gb, h100, h200 …; several as 2xh100")] = "h200",
    rates: Annotated[Path | None, typer.Option(help="recording of the model: its measured loads and batches")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the analyses of costs, with figures")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Parameters, FLOPs, bytes, memory and the least time of a step, from a config; and of a dense counterpart."""
    from workbench.efficiency.devices import device as device_named
    from workbench.efficiency.subject import costed, with_published

    on = device_named(device)
    how: dict[str, Any] = {"batch": batch, "context": context, "dtype": dtype}
    subject = costed(model, against or model, **how)
    found = {model: _facts(subject.topology, on, **how)}
    if rates is not None:
        found[model]["measured"] = _measured(subject.topology, rates, on, **how)
    if against:
        found[against] = _facts(subject.other, on, **how) | {"is": subject.note}
    if as_json:
        asked = {**how, "device": on.name, "peak_flops": on.peak(dtype), "bandwidth_bytes": on.bandwidth_bytes,
                 "memory_bytes": on.memory_bytes, "source": on.source}  # fmt: skip
        print(json.dumps({"asked": asked, "models": found}, indent=1))
    else:
        _show(found, on, **how)
    if out is not None:
        from analyses import _costs
        from workbench.bundle import finish

        held = with_published(subject if against else costed(model, **how))
        for name in _costs.names():
            console.print(f"{name}: {len(_costs.write(held, name, out))} files")
        finish(out)


def _facts(topology: "Topology", on: Any, *, batch: int, context: int, dtype: str) -> dict[str, Any]:
    from workbench.efficiency import costs as formulas
    from workbench.efficiency.roofline import decode_floor, prefill_floor

    width = formulas.dtype_bytes(dtype)
    how: dict[str, Any] = {"batch": batch, "context": context}
    read = formulas.step_bytes(topology, **how, weight_bytes=width, value_bytes=max(width, 2))
    decode = decode_floor(topology, on, **how, dtype=dtype)
    prefill = prefill_floor(topology, on, batch=batch, tokens=context, dtype=dtype)
    kept = {dt: formulas.memory(topology, **how, dtype=dt) for dt in formulas.DTYPE_BYTES}
    return {
        "parameters": {
            name: {"total": s.total, "active": s.active} for name, s in formulas.parameters(topology).items()
        },
        "parameters_total": topology.parameters_total,
        "parameters_active": topology.parameters_active,
        "linear_flops_per_token": formulas.linear_flops(topology),
        "decode_flops_per_token": formulas.decode_flops(topology, context=context),
        "prefill_flops_per_sequence": formulas.prefill_flops(topology, tokens=context, logits=1),
        "decode_step_bytes": read,
        "cache_bytes_per_token": formulas.cache_bytes(topology, context=2, value_bytes=max(width, 2))
        - formulas.cache_bytes(topology, context=1, value_bytes=max(width, 2)),
        "experts_met_uniform": formulas.uniform_coverage(topology, tokens=batch).tolist(),
        "memory_bytes": {
            dt: {"weights": m.weights_bytes, "cache": m.cache_bytes, "fits": m.total_bytes <= on.memory_bytes}
            for dt, m in kept.items()
        },
        "decode_step": _floor(decode),
        "prefill": _floor(prefill),
    }


def _floor(found: Any) -> dict[str, Any]:
    return {
        "flops": found.flops, "bytes": found.n_bytes, "flop_per_byte": found.intensity, "bound": found.bound,
        "floor_ms": found.time_s * 1e3,
    }  # fmt: skip


def _measured(
    topology: "Topology", rates: Path, on: Any, *, batch: int, context: int, dtype: str
) -> dict[str, dict[str, Any]]:
    """A step's bytes with a recording's loads, and with what its batches meet."""
    from analyses import coverage
    from workbench.efficiency.costs import known_parts
    from workbench.efficiency.roofline import decode_floor
    from workbench.errors import AnalysisError
    from workbench.recording import Recording

    recording = Recording.open(rates)
    shapes = [[(r.layer, r.site, r.n_experts, r.top_k) for r in t.routers] for t in (recording.topology, topology)]
    if shapes[0] != shapes[1]:
        raise AnalysisError(
            f"--rates: {rates} is of {recording.manifest['identity']['model']}, whose routers differ from this model's "
            "in layers, experts or choices; give a recording of the model itself."
        )
    table = coverage.run(recording, coverage.Settings(largest=batch)).batches
    largest = int(table["batch"].max())
    table = table[table["batch"] == largest]
    if largest != batch:
        raise AnalysisError(
            f"--rates: batches of 1, 2, 4 … to {largest} are measured from {rates}, and --batch is {batch}; ask for "
            "one of them, or record more documents."
        )
    keys = [(m.layer, m.site) for m in known_parts(topology).moe]
    sites = table["site"] if "site" in table else [keys[0][1]] * len(table)
    of: Mapping[tuple[int, str], Any] = dict(
        zip(zip(table["layer"], sites, strict=True), table.to_dict("records"), strict=True)
    )
    said = {}
    for name in ("uniform", "independent", "measured"):
        met_R = _array([of[key][name] for key in keys])
        floor = decode_floor(topology, on, batch=batch, context=context, dtype=dtype, experts_R=met_R)
        said[name] = {"experts_met": met_R.tolist(), **_floor(floor)}
    return said


def _array(values: list[float]) -> "np.ndarray":
    import numpy as np

    return np.array(values)


def _show(found: Mapping[str, Mapping[str, Any]], on: Any, *, batch: int, context: int, dtype: str) -> None:
    from rich.table import Table

    names = list(found)
    table = Table("", *names, title=f"{on.name}: {on.peak(dtype) / 1e12:,.1f} TFLOP/s {dtype}, "
                  f"{on.bandwidth_bytes / 1e12:,.2f} TB/s ({on.source})")  # fmt: skip

    def rows(title: str, key: str, unit: float, *, pick: str = "") -> None:
        table.add_section()
        parts = list(dict.fromkeys(part for name in names for part in found[name][key]))
        numbers = {n: {p: v[pick] if pick else v for p, v in found[n][key].items()} for n in names}
        table.add_row(f"[bold]{title}", *[f"[bold]{_number(sum(numbers[n].values()) / unit)}" for n in names])
        for part in parts:
            cells = [f"{_number(numbers[n][part] / unit)}" if part in numbers[n] else "–" for n in names]
            table.add_row(f"  {part}", *cells)

    rows("parameters, 10⁶", "parameters", 1e6, pick="total")
    rows("active per token, 10⁶", "parameters", 1e6, pick="active")
    rows(f"decode, GFLOP per token at context {context:,}", "decode_flops_per_token", 1e9)
    rows(f"prefill of {context:,} tokens, TFLOP", "prefill_flops_per_sequence", 1e12)
    rows(f"decode step of {batch:,}, GB read", "decode_step_bytes", 1e9)
    table.add_section()
    table.add_row("cache, KiB per token", *[f"{found[n]['cache_bytes_per_token'] / 1024:,.1f}" for n in names])
    met = [found[n]["experts_met_uniform"] for n in names]
    table.add_row("distinct experts met, uniform", *[f"{sum(m) / len(m):,.1f}" if m else "–" for m in met])
    for what, title in (
        ("decode_step", f"decode step of {batch:,}"),
        ("prefill", f"prefill of {batch:,} × {context:,}"),
    ):
        cells = [found[n][what] for n in names]
        table.add_row(
            f"{title}, floor",
            *[f"{_number(c['floor_ms'])} ms, {c['bound']}-bound, {c['flop_per_byte']:,.1f} FLOP/byte" for c in cells],
        )
    table.add_section()
    for kept in found[names[0]]["memory_bytes"]:
        cells = [found[n]["memory_bytes"][kept] for n in names]
        table.add_row(
            f"memory as {kept}, GB",
            *[f"{_number((c['weights'] + c['cache']) / 1e9)}{'' if c['fits'] else ' (does not fit)'}" for c in cells],
        )
    console.print(table)
    for name in names:
        for kind, said in found[name].get("measured", {}).items():
            mean = sum(said["experts_met"]) / len(said["experts_met"])
            console.print(
                f"{name}, {kind} routing: {mean:,.2f} experts met, {_number(said['bytes'] / 1e9)} GB, "
                f"{_number(said['floor_ms'])} ms", highlight=False,
            )  # fmt: skip
        if found[name].get("is"):
            console.print(f"{name}: {found[name]['is']}", highlight=False)
    console.print("Floors: the device's stated peaks, nothing lost; experts met as under uniform random routing.")


def _number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"
