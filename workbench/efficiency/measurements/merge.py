"""One measurement out of several that were made one after the other, for models that do not fit into memory together.

A, B, A: the rounds of the second A follow those of the first, and stand beside B's of the same number. They were not
interleaved, and the measurement says so; what the machine did in between is told by the ceilings that each brought.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.efficiency.measurements.measurement import Measurement, write_measurement
from workbench.errors import MeasurementError

_VALUES = {
    "memory": ["before_bytes", "peak_bytes", "counter"],
    "coverage": ["tokens", "passes", "distinct", "lowest", "highest", "uniform", "independent", "n_experts", "top_k"],
    "device": ["busy_s"],
    "checks": ["tokens_same", "logit_difference", "largest_logit"],
    "energy": ["runs", "window_s", "joules", "idle_watts"],
}
"""Columns of what is measured once: of a model that came twice the first row of each key stays."""


def join(pieces: Mapping[str, Measurement], out: Path, *, command: Sequence[str] = ()) -> Measurement:
    """Writes the measurement that the pieces make together.

    Args:
        pieces: By name, in the order in which they were made; each of one model, the measured one first.
        out: A new or empty folder.
        command: What made it.

    Raises:
        MeasurementError: a piece holds several models, they are of one model, or they were launched differently.
    """
    found = list(pieces.values())
    several = [name for name, piece in pieces.items() if len(piece.models) != 1]
    if several:
        raise MeasurementError(f"piece {several[0]} holds several models; pieces of one model each are joined.")
    labels = [next(iter(piece.models)) for piece in found]
    if len(set(labels)) < 2:
        raise MeasurementError(f"the pieces are all of {labels[0]}; those of two models make a comparison.")
    launches = {piece.manifest["base"]["launch"] for piece in found}
    if len(launches) > 1:
        raise MeasurementError(
            f"the pieces launch their steps differently ({', '.join(sorted(launches))}); measure all with one --decode."
        )
    tables = {name: [] for piece in found for name in piece.manifest["tables"]}  # type: dict[str, list[pd.DataFrame]]
    rounds: dict[str, int] = {}
    for label, piece in zip(labels, found, strict=True):
        begins = rounds.get(label, 0)
        for name in piece.manifest["tables"]:
            table = piece.table(name)
            if label != labels[0] and "experts" in table:
                table = table[table["experts"] == piece.manifest["base"]["experts"]]
            if "round" in table:
                table = table.assign(round=table["round"] + begins)
            tables[name].append(table)
        rounds[label] = begins + int(piece.manifest["settings"]["rounds"])
    whole = {name: _once(name, pd.concat(parts, ignore_index=True)) for name, parts in tables.items()}
    return write_measurement(out, whole, _manifest(pieces, labels, rounds, command))


def _once(name: str, table: pd.DataFrame) -> pd.DataFrame:
    if name not in _VALUES:
        return table
    return table.drop_duplicates([column for column in table if column not in _VALUES[name]], ignore_index=True)


def _manifest(
    pieces: Mapping[str, Measurement], labels: Sequence[str], rounds: Mapping[str, int], command: Sequence[str]
) -> dict[str, Any]:
    first, *_, last = (piece.manifest for piece in pieces.values())
    prompts = {k: v for piece in pieces.values() for k, v in piece.manifest["settings"]["prompts"].items()}
    return {
        "models": {label: piece.models[label] for label, piece in zip(labels, pieces.values(), strict=True)},
        "settings": {**first["settings"], "rounds": min(rounds.values()), "prompts": prompts},
        "base": first["base"],
        "machine": first["machine"],
        "load_average": {"before": first["load_average"]["before"], "after": last["load_average"]["after"]},
        "ceiling": {
            "before": first["ceiling"]["before"], "after": last["ceiling"]["after"], "dtype": first["ceiling"]["dtype"],
        },
        "hook_s": first["hook_s"],
        "warm_up": [row for piece in pieces.values() for row in piece.manifest["warm_up"]],
        "left_out": [f"{name}: {line}" for name, piece in pieces.items() for line in piece.manifest["left_out"]],
        "energy": first["energy"],
        "seconds": sum(piece.manifest["seconds"] for piece in pieces.values()),
        "versions": first["versions"],
        "command": list(command),
        "pieces": [
            {"name": name, "model": label, "digest": piece.digest,
             **{key: piece.manifest[key] for key in ("command", "ceiling", "load_average", "seconds", "machine")}}
            for label, (name, piece) in zip(labels, pieces.items(), strict=True)
        ],
    }  # fmt: skip
