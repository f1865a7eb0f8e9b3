"""Traces of other tools: arrays, lines, tables and dumps that are damaged, of another shape, or of another tool."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from tests.fuzz import bases
from tests.fuzz.mutate import NUMBERS, TEXTS, as_json, damaged, mutated, near, strange
from tests.fuzz.tables import mutated_table, written
from tests.fuzz.trial import Trial
from workbench.recordings.importers.build import READERS, import_trace

NAMES = ("npz", "npy", "olmoe", "parquet", "token", "rids", "stat")


def prepare(base: Path) -> None:
    """A trace of each format, and a tokenizer."""
    bases.write_traces(base)
    (base / "tokenizer").mkdir()
    bases.tokenizer_files(base / "tokenizer")


def run(trial: Trial) -> None:
    """Damages a trace or what is said of it, and imports it."""
    rng = trial.rng
    name = rng.choice(NAMES)
    kind, file, options = _given(trial.base)[name]
    mine = trial.inputs / file.name
    shutil.copy(file, mine)
    trial.note(name)
    trial.untouched = rng.random() < 0.05
    path = mine
    if not trial.untouched:
        if rng.random() < 0.8:
            MUTATORS[name](rng, mine)
        if rng.random() < 0.4:
            options = _options(trial, options)
        kind = rng.choice((kind,) * 12 + (*READERS, *TEXTS[:5]))
        path = _placed(rng, mine, trial.inputs)
    out = trial.out / "recording"
    trial.note(f"{kind} {path} {options}"[:500])
    if rng.random() < 0.15:
        masks = ["--mask-zero-rows"] if options.pop("mask_zero_rows", False) else []
        words = [str(word) for key, value in options.items() for word in (f"--{_OPTIONS.get(key, key)}", _word(value))]
        words += masks
        if not trial.command("import", kind, str(path), "--out", str(out), *words):
            trial.refuse_leftovers(out, whole=True)
        return
    recording = trial.attempt("import", import_trace, kind, path, out, **options)
    if recording is None:
        trial.refuse_leftovers(out, whole=True)
        return
    trial.attempt("verify", recording.verify)
    from analyses import catalogue
    from analyses.question import Question

    for analysis in rng.sample(catalogue.of_recordings(), 2):
        trial.attempt(f"analysis {analysis}", Question(recording, analysis).answer)


_OPTIONS = {"n_experts": "experts", "top_k": "top-k", "shard_tokens": "shard-tokens"}


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _given(base: Path) -> dict[str, tuple[str, Path, dict[str, Any]]]:
    from tests.importers import sources

    layers = {"layers": sources.LAYERS, "n_experts": sources.E}
    return {
        "npz": ("numpy", base / "arrays.npz", {"n_experts": sources.E}),
        "npy": ("routed-experts", base / "experts.npy", layers),
        "olmoe": ("olmoe", base / "lines.jsonl", {"n_experts": sources.E}),
        "parquet": ("parquet", base / "rows.parquet", {"n_experts": sources.E}),
        "token": ("sglang", base / "token.pt", {}),
        "rids": ("sglang", base / "rids.pt", {}),
        "stat": ("sglang", base / "stat.pt", {"top_k": 2}),
    }


def _options(trial: Trial, options: dict[str, Any]) -> dict[str, Any]:
    """Options that do not belong, or are wrong."""
    rng = trial.rng
    changed = {key: value for key, value in options.items() if rng.random() < 0.7}
    whole = [number for number in NUMBERS if isinstance(number, int)]
    for _ in range(rng.choice((1, 1, 2))):
        changed |= rng.choice((
            {"n_experts": rng.choice(whole)}, {"top_k": rng.choice(whole)}, {"shard_tokens": rng.choice(whole)},
            {"layers": rng.choice(((0,), (1, 2), (0, 1), (5, 9), (10**7, 10**7 + 1), (0, 1, 2)))},
            {"phase": rng.choice(("prefill", "decode", "both", ""))}, {"ranks": rng.choice(whole)},
            {"model": rng.choice(("tiny-moe", "mixtral-8x7b", "tiny-dense", "no/such", "no", ""))},
            {"tokenizer": rng.choice((str(trial.base / "tokenizer"), "tiny-moe", "no", str(trial.base)))},
            {"documents": _labels(rng, trial.inputs)}, {"mask_zero_rows": rng.random() < 0.8},
        ))  # fmt: skip
    return changed


def _labels(rng: Random, folder: Path) -> Path:
    """What is known of the documents, damaged."""
    names = rng.choice((("t-4", "t-9"), ("req_1", "req_2"), ("a", "b"), ("1", "2"), ("2", "10"), ("0", "1")))
    rows: list[Any] = [
        {"id": names[0], "domain": "code", "cluster": "x", "token_ids": [7, 8, 9], "prompt_tokens": 2},
        {"id": names[1], "domain": "math", "prompt_tokens": 1},
    ][: rng.choice((1, 2, 2, 2))]
    for row in rows:
        row.update(rng.choice(({}, {}, {"start": rng.choice((0, 1, 5, 2**31 - 2))})))
    rows = [mutated(rng, row) if rng.random() < 0.5 else row for row in rows]
    file = folder / "labels.jsonl"
    file.write_bytes(b"\n".join(as_json(rng, row) for row in rows))
    return file if rng.random() < 0.9 else folder / rng.choice(("no.jsonl", ".", "x" * 300))


def _placed(rng: Random, file: Path, folder: Path) -> Path:
    """The file; at times a folder of such files, or a name that is none."""
    kind = rng.choice(("file",) * 12 + ("folder", "two", "ending", "missing", "long", "link"))
    if kind == "folder":
        return folder
    if kind == "two":
        (folder / "all").mkdir()
        for name in ("req_1", "req_10", "req_2"):
            shutil.copy(file, folder / "all" / f"{name}{file.suffix}")
        return folder / "all"
    if kind == "ending":
        return file.rename(file.with_suffix(rng.choice((".bin", ".npy", ".npz", ".pt", ".jsonl", ".json", ""))))
    if kind == "link":
        link = folder / f"loop{file.suffix}"
        link.symlink_to(link.name)
        return link
    return {"missing": folder / "no", "long": folder / ("x" * 300 + file.suffix)}.get(kind, file)


def npy(rng: Random, file: Path) -> None:
    """An array of another type or shape; a header that lies; objects; damaged bytes."""
    array = np.load(file)
    kind = rng.choice(("values", "type", "shape", "header", "object", "bytes", "bytes"))
    if kind == "object":
        np.save(file, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    elif kind == "header":
        file.write_bytes(_lying(rng, array))
    elif kind == "bytes":
        file.write_bytes(damaged(rng, file.read_bytes()))
    else:
        np.save(file, _array(rng, array, kind))


def _array(rng: Random, array: np.ndarray, kind: str) -> np.ndarray:
    if kind == "values" and array.dtype.kind in "iuf" and array.size:
        array = array.astype(np.int64)
        value = rng.choice([n for n in NUMBERS if isinstance(n, int) and abs(n) < 2**63])
        array.reshape(-1)[rng.randrange(array.size) if rng.random() < 0.5 else slice(None)] = value
        return array
    if kind == "type":
        types = ("f4", "f8", "i1", "u1", "u2", "u8", "?", "c8", "U3", "S3", "M8[D]", ">i4", "V8")
        with np.errstate(all="ignore"):
            try:
                return array.astype(rng.choice(types))
            except (ValueError, TypeError):
                return array.astype("U3")
    return rng.choice((
        array[None], array[0] if array.ndim and len(array) else array, array.reshape(-1), array[:0], array[..., :0],
        np.concatenate([array, array], -1) if array.ndim else array, np.array(3), np.zeros((0, 0, 0), int), array.T,
        array[None, None], np.zeros((2, 3, 5, 2), int), np.full((4, 3, 2), -1), np.asfortranarray(array),
    ))  # fmt: skip


def _lying(rng: Random, array: np.ndarray) -> bytes:
    shape: Any = rng.choice(
        ((10**9, 4, 8), (2**40,), (2**62, 2, 2), (-1, 2, 2), (5, 2), "(5, 2, 2)", (5, 2, 2.0), (), (2**31, 1, 1))
    )
    header = {"descr": rng.choice(("<i2", "|O", "<i8", "<f4", "|V0", "junk", 3, [("a", "<i2")])),
              "fortran_order": rng.choice((False, True, 3)), "shape": shape}  # fmt: skip
    text = (repr(header) if rng.random() < 0.8 else "[" * 3_000).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


def npz(rng: Random, file: Path) -> None:
    """An archive with arrays of other names, types and lengths; entries that lie; damaged bytes."""
    with np.load(file) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    kind = rng.choice(("array", "array", "array", "names", "entry", "bytes", "bytes", "weights"))
    key = rng.choice(list(arrays))
    if kind == "bytes":
        file.write_bytes(damaged(rng, file.read_bytes()))
        return
    if kind == "entry":
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive_:
            name = rng.choice(("weights.npy", "ids.npy", "../../x.npy", "a.txt", "tokens"))
            archive_.writestr(name, rng.choice((b"", b"junk", _lying(rng, arrays["ids"]), bytes(50 * 2**20))))
        return
    if kind == "weights":
        arrays["weights"] = rng.choice(
            (np.ones(3), *(np.full(arrays["ids"].shape, fill) for fill in (1, np.nan, 1e30, "a")))
        )
    elif kind == "names":
        arrays[rng.choice(("x", "weights", "positions", "ids", "a/b", "é"))] = arrays.pop(key)
    else:
        arrays[key] = _array(rng, arrays[key], rng.choice(("values", "type", "shape")))
    np.savez(file, **arrays)


def olmoe(rng: Random, file: Path) -> None:
    """Lines with other values, ragged lists, or no JSON at all."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kind = rng.choice(("values", "values", "values", "line", "bytes", "empty", "ids"))
    if kind == "bytes":
        file.write_bytes(damaged(rng, file.read_bytes()))
        return
    if kind == "ids":
        row = rng.choice(rows)
        key = rng.choice(("input_ids", "exp_ids", "predicted_token_ids"))
        row[key] = rng.choice((np.array(row[key]).astype(rng.choice(("f8", "?", "U3"))).tolist(), [], [[]], [row[key]],
                               strange(rng), [2**70], None, "a", [[[2**40]]]))  # fmt: skip
    lines = [as_json(rng, mutated(rng, row) if kind == "values" else row) for row in rows]
    if kind == "line":
        lines[rng.randrange(len(lines))] = rng.choice(
            (b"[" * 100_000, b"9" * 5_000, b"{", b"null", b"\xff", b"NaN", b'"a"', b"[1]")
        )
    file.write_bytes(b"" if kind == "empty" else b"\n".join(lines))


def parquet(rng: Random, file: Path) -> None:
    """Columns of another type, width or name; damaged pages."""
    raw = (
        written(mutated_table(rng, pq.read_table(file)), rng)
        if rng.random() < 0.75
        else damaged(rng, file.read_bytes())
    )
    file.write_bytes(raw)


class _Foreign:
    """What no dump should hold."""


def dump(rng: Random, file: Path) -> None:
    """A dump with values of another type or shape; with objects; with damaged bytes."""
    kind = rng.choice(("values", "values", "values", "tensor", "tensor", "object", "bytes", "bytes", "other"))
    if kind == "bytes":
        file.write_bytes(damaged(rng, file.read_bytes()))
    elif kind == "object":
        raw = io.BytesIO()
        torch.save({"records": [_Foreign()]}, raw)
        file.write_bytes(rng.choice((raw.getvalue(), pickle.dumps({"a": 1}), b"\x80\x02N.", b"PK\x03\x04")))
    elif kind == "other":
        physical = {"records": [{"global_physical_count": torch.zeros(3)}]}
        others = ([], {}, 3, torch.zeros(3), {"records": []}, {"records": [{}]}, {1: 2}, {"logical_count": 3}, physical)
        torch.save(rng.choice((*others, {"records": None})), file)
    else:
        held = torch.load(file, weights_only=True)
        _change(rng, held, tensors=kind == "tensor")
        torch.save(held, file)


def _change(rng: Random, held: dict[str, Any], *, tensors: bool) -> None:
    container: Any = held
    if held.get("records") and rng.random() < 0.8:
        container = rng.choice(held["records"])
    keys = [key for key, value in container.items() if isinstance(value, torch.Tensor) == tensors] or list(container)
    key = rng.choice(keys)
    now = container[key]
    if not isinstance(now, torch.Tensor):
        action = rng.choice(("near", "strange", "drop", "tensor"))
        if action == "drop":
            del container[key]
        else:
            container[key] = {"near": lambda: near(rng, now), "strange": lambda: strange(rng),
                              "tensor": lambda: torch.zeros(2)}[action]()  # fmt: skip
        return
    value = rng.choice([n for n in NUMBERS if isinstance(n, int) and abs(n) < 2**31])
    container[key] = rng.choice((
        now.float, now.tolist, now.to_sparse, now.bool, lambda: now[0], lambda: now[None], lambda: now[:0],
        lambda: None, lambda: torch.full_like(now, value), lambda: torch.full_like(now, -1),
        lambda: now.to(torch.complex64), lambda: torch.cat([now, now], -1), lambda: now.transpose(0, -1),
        lambda: now * -1, lambda: torch.zeros(1, dtype=now.dtype).expand(2**20, 2**10, 8), lambda: "a",
        lambda: now.to(torch.bfloat16),
    ))()  # fmt: skip


MUTATORS = {"npz": npz, "npy": npy, "olmoe": olmoe, "parquet": parquet, "token": dump, "rids": dump, "stat": dump}
