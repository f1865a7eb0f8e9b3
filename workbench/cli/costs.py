"""`workbench costs`: what a model costs by its config, beside a dense one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import costs_screen
from workbench.errors import AnalysisError

if TYPE_CHECKING:
    import numpy as np

    from workbench.models.topology import Topology


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(costs)


def costs(
    model: Annotated[str, typer.Argument(help="bundled model, folder, published config or hub id; no weight is read")],
    against: Annotated[str, typer.Option(help="iso-active, iso-total, iso-memory, or a model")] = "",
    batch: Annotated[str, typer.Option(help="sequences decoded together, e.g. 1,8,64")] = "1,4,32,256",
    context: Annotated[
        str, typer.Option(help="tokens of each: in the cache, and of the prefill; e.g. 1024,8192")
    ] = "1024",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float8, int4")] = "bfloat16",
    device: Annotated[str, typer.Option(help="a100-80gb, h100, h200 …; several as 2xh100")] = "h200",
    rates: Annotated[Path | None, typer.Option(help="recording of the model: its measured loads and batches")] = None,
    parts: Annotated[bool, typer.Option("--parts", help="also by part: experts, attention, head …")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for the analyses of costs, with figures")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, parts included")] = False,
) -> None:
    """Parameters, FLOPs, bytes, memory and the least time of a step, from a config; and of a dense counterpart."""
    from workbench.efficiency.costs.comparison import costed, with_published
    from workbench.efficiency.costs.devices import device as device_named

    on = device_named(device)
    points = [(b, c) for c in _numbers(context, "--context") for b in _numbers(batch, "--batch")]
    first: dict[str, Any] = {"batch": points[0][0], "context": points[0][1], "dtype": dtype}
    subject = costed(model, against or model, **first)
    found = {model: _facts(subject.topology, on, points, dtype)}
    if rates is not None:
        for point in found[model]["points"]:
            how = {"batch": point["batch"], "context": point["context"], "dtype": dtype}
            point["measured"] = _measured(subject.topology, rates, on, **how)
    if against:
        found[against] = _facts(subject.other, on, points, dtype) | {"is": subject.note}
    if as_json:
        asked = {"batch": _numbers(batch, "--batch"), "context": _numbers(context, "--context"), "dtype": dtype,
                 "device": on.name, "peak_flops": on.peak(dtype), "bandwidth_bytes": on.bandwidth_bytes,
                 "memory_bytes": on.memory_bytes, "source": on.source}  # fmt: skip
        print(json.dumps({"asked": asked, "models": found}, indent=1))
    else:
        costs_screen.show(found, on, dtype=dtype, parts=parts)
        if against:
            costs_screen.story(subject, on, sorted({c for _, c in points}), dtype=dtype)
    if out is not None:
        from analyses import catalogue
        from analyses.question import Question
        from workbench.cli.analyze import run_all

        held = with_published(subject if against else costed(model, **first))
        run_all([Question(held, name) for name in catalogue.names("costs")], out)


def _numbers(text: str, option: str) -> list[int]:
    """Numbers with commas, each 1 or more."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise AnalysisError(f"{option} is {text!r}; whole numbers from 1 with commas were expected, e.g. 1,8,64.")
    return list(dict.fromkeys(int(word) for word in words))


def _facts(topology: "Topology", on: Any, points: Sequence[tuple[int, int]], dtype: str) -> dict[str, Any]:
    from workbench.efficiency.costs import formulas

    width = formulas.dtype_bytes(dtype)
    cache = [formulas.cache_bytes(topology, context=c, value_bytes=max(width, 2)) for c in (1, 2)]
    return {
        "parameters": {
            name: {"total": s.total, "active": s.active} for name, s in formulas.parameters(topology).items()
        },
        "parameters_total": topology.parameters_total,
        "parameters_active": topology.parameters_active,
        "linear_flops_per_token": formulas.linear_flops(topology),
        "cache_bytes_per_token": cache[1] - cache[0],
        "points": [_point(topology, on, batch=b, context=c, dtype=dtype) for b, c in points],
    }


def _point(topology: "Topology", on: Any, *, batch: int, context: int, dtype: str) -> dict[str, Any]:
    """What depends on how many sequences of how many tokens."""
    from workbench.efficiency.costs import formulas
    from workbench.efficiency.costs.roofline import decode_floor, prefill_floor

    width = formulas.dtype_bytes(dtype)
    how: dict[str, Any] = {"batch": batch, "context": context}
    kept = {dt: formulas.memory(topology, **how, dtype=dt) for dt in formulas.DTYPE_BYTES}
    return {
        **how,
        "decode_flops_per_token": formulas.decode_flops(topology, context=context),
        "prefill_flops_per_sequence": formulas.prefill_flops(topology, tokens=context, logits=1),
        "decode_step_bytes": formulas.step_bytes(topology, **how, weight_bytes=width, value_bytes=max(width, 2)),
        "experts_met_uniform": formulas.uniform_coverage(topology, tokens=batch).tolist(),
        "memory_bytes": {
            dt: {"weights": m.weights_bytes, "cache": m.cache_bytes, "fits": m.total_bytes <= on.memory_bytes}
            for dt, m in kept.items()
        },
        "decode_step": _floor(decode_floor(topology, on, **how, dtype=dtype)),
        "prefill": _floor(prefill_floor(topology, on, batch=batch, tokens=context, dtype=dtype)),
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
    from analyses.structure import coverage
    from workbench.efficiency.costs.formulas import known_parts
    from workbench.efficiency.costs.roofline import decode_floor
    from workbench.recordings.recording import Recording

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
