"""Safetensors: headers that lie, tensors of another type, shape, name or value, files that were cut."""

import json
import math
import shutil
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import bases
from tests.fuzz.kinds.model import ask
from tests.fuzz.mutate import NUMBERS, TEXTS, as_json, damaged, mutated
from tests.fuzz.trial import Trial

FAMILIES = ("qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss")
FLOAT8 = "qwen3_moe-fp8"
_TYPES = ("F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "I4", "C64", "", "f32")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def prepare(base: Path) -> None:
    """A folder of some families."""
    from tests.models.test_quantized import fp8

    for family in FAMILIES:
        bases.model_folder(base / family, family)
    fp8(base / FLOAT8, FLOAT8.partition("-")[0])
    bases.tokenizer_files(base / FLOAT8)


def run(trial: Trial) -> None:
    """Damages the weights and asks what can be asked of a model."""
    rng = trial.rng
    folder = trial.inputs / "model"
    shutil.copytree(trial.base / rng.choice((*FAMILIES, FLOAT8)), folder)
    file = folder / "model.safetensors"
    header, data = split(file.read_bytes())
    trial.untouched = rng.random() < 0.03
    if not trial.untouched:
        change = rng.choice(CHANGES)
        trial.note(change.__name__)
        file.write_bytes(change(rng, header, data))
        if rng.random() < 0.15:
            sharded(rng, folder, header)
        if rng.random() < 0.1:
            adapter(rng, folder)
    ask(trial, folder)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    """A file of a header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _name(rng: Random, header: dict[str, Any]) -> str:
    return rng.choice([name for name in header if name != "__metadata__"])


def header_values(rng: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Anything in the header."""
    return joined(mutated(rng, header), data)


def header_length(rng: Random, header: dict[str, Any], data: bytes) -> bytes:
    """A length that is not the header's."""
    true = len(json.dumps(header))
    return joined(header, data, length=rng.choice((0, 1, true - 1, true + 1, true * 2, 2**31, 2**40, 2**63, 2**64 - 1)))


def entry(rng: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Type, shape or place of one tensor."""
    held = header[_name(rng, header)]
    kind = rng.choice(("dtype", "shape", "offsets", "same bytes"))
    if kind == "dtype":
        held["dtype"] = rng.choice(_TYPES)
    elif kind == "shape":
        held["shape"] = rng.choice((held["shape"][::-1], [*held["shape"], 1], held["shape"][1:], [0], [], [-1],
                                    [2**40, 2**40], [rng.choice(NUMBERS)], "a", None))  # fmt: skip
    elif kind == "offsets":
        first, last = held["data_offsets"]
        held["data_offsets"] = rng.choice(([last, first], [first, last + 4], [first - 4, last], [0, 0], [first, 2**62],
                                           [0, len(data)], [first], None, [str(first), str(last)]))  # fmt: skip
    else:  # a type of the same width: the bytes are read as something else
        size = _BYTES.get(held["dtype"], 4)
        held["dtype"] = rng.choice([name for name, width in _BYTES.items() if width == size])
    return joined(header, data)


def names(rng: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Tensors that are gone, named otherwise, or there besides."""
    name = _name(rng, header)
    kind = rng.choice(("drop", "rename", "add", "scale", "bias", "prefix", "swap"))
    if kind == "drop":
        return repacked({key: value for key, value in tensors(header, data).items() if key != name})
    held = tensors(header, data)
    if kind == "rename":
        held[rng.choice((*TEXTS[:40], f"{name}.x", name.upper())).replace("\ud800", "")] = held.pop(name)
    elif kind == "add":
        held[rng.choice(("a", "model.extra.weight", f"{name}_extra", "x" * 3_000))] = held[name]
    elif kind == "scale":
        held[name.replace("weight", rng.choice(("weight_scale", "weight_scale_inv", "qweight", "scales")))] = held[name]
    elif kind == "bias":
        held[name.replace("weight", "bias")] = held[name]
    elif kind == "prefix":
        before = rng.choice(("base_model.model.", "module.", "_orig_mod.", "language_model."))
        held = {before + key: value for key, value in held.items()}
    else:
        other = _name(rng, header)
        held[name], held[other] = held[other], held[name]
    return repacked(held)


def values(rng: Random, header: dict[str, Any], data: bytes) -> bytes:
    """NaN, infinities, huge or equal values in a tensor, or all of them in a narrower type."""
    import numpy as np

    held = tensors(header, data)
    name = _name(rng, header)
    dtype, shape, raw = held[name]
    if dtype == "F32":
        array = np.frombuffer(raw, np.float32).copy()
        fill = rng.choice((math.nan, math.inf, -math.inf, 0.0, 1e30, 1e38, 6e4, 1e-40))
        where = slice(None) if rng.random() < 0.4 else rng.randrange(max(len(array), 1))
        if len(array):
            array[where] = fill
        held[name] = dtype, shape, array.tobytes()
    if rng.random() < 0.2:
        wide = {key: np.frombuffer(value[2], np.float32) for key, value in held.items() if value[0] == "F32"}
        held |= {key: ("F16", held[key][1], value.astype(np.float16).tobytes()) for key, value in wide.items()}
    return repacked(held)


def raw_bytes(rng: Random, header: dict[str, Any], data: bytes) -> bytes:
    """A file that was cut or damaged."""
    return damaged(rng, joined(header, data))


def tensors(header: dict[str, Any], data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor."""
    held = {name: value for name, value in header.items() if name != "__metadata__"}
    return {n: (v["dtype"], v["shape"], data[slice(*v["data_offsets"])]) for n, v in held.items()}


def repacked(held: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A whole file of tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in held.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return joined(header, data)


def sharded(rng: Random, folder: Path, header: dict[str, Any]) -> None:
    """An index beside it, right or wrong; at times with a second file of the last tensors once more."""
    parts = rng.choice((1, 2))
    files = [f"model-{part:05}-of-{parts:05}.safetensors" for part in range(1, parts + 1)]
    (folder / "model.safetensors").rename(folder / files[0])
    named = {name: files[0] for name in header if name != "__metadata__"}
    if parts == 2:
        raw = (folder / files[0]).read_bytes()
        try:
            held = tensors(*split(raw))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            held = {"a": ("F32", [1], bytes(4))}  # no header is left to cut in two
        second = list(held)[len(held) // 2 :]
        if rng.random() < 0.8:
            (folder / files[0]).write_bytes(repacked({name: each for name, each in held.items() if name not in second}))
        (folder / files[1]).write_bytes(repacked({name: held[name] for name in second}))
        named |= dict.fromkeys(second, files[1])
    index: Any = {"metadata": {"total_size": 1}, "weight_map": named}
    if rng.random() < 0.7:
        index = mutated(rng, index)
        if rng.random() < 0.3 and isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
            index["weight_map"]["a"] = rng.choice(("../../x.safetensors", "/etc/passwd", "model-2.safetensors", "", 3))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(rng: Random, folder: Path) -> None:
    """An adapter beside the weights, whole or not."""
    held: Any = {"peft_type": "LORA", "base_model_name_or_path": "a/b", "target_modules": ["q_proj"], "r": 2}
    (folder / "adapter_config.json").write_bytes(as_json(rng, mutated(rng, held) if rng.random() < 0.6 else held))
    name = f"{rng.choice(('base_model.model.lm_head.lora_A.weight', 'lm_head.weight', ''))}"
    raw = repacked({name: ("F32", [2, 4], bytes(32))})
    (folder / "adapter_model.safetensors").write_bytes(damaged(rng, raw) if rng.random() < 0.5 else raw)


CHANGES = (header_values, header_values, header_length, entry, entry, names, names, values, values, raw_bytes)
