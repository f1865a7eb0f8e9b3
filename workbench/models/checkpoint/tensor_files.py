"""The safetensors files of a checkpoint: which of them transformers reads, what they hold, and what lies beside them.

Headers alone are read here, so that a checkpoint can be refused before a weight of it is.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from workbench.errors import ModelError
from workbench.models.library_errors import reason

AN_ADAPTER = "an adapter; adapters are never applied"
# Files beside the weights that are no part of them, each with the reason.
_BESIDE = (
    (r"adapter_model.*", AN_ADAPTER),
    (r"consolidated.*", "the weights once more, in the layout of the model's makers"),
)
_WEIGHTS_OF_TRAINING = re.compile(r"optimizer|scheduler|random_states|training_args")


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: its file, its dtype as safetensors spells it (`F32`, `F8_E4M3`), and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorFiles:
    """The files of a checkpoint's folder.

    Attributes:
        read: Files that transformers reads.
        tensors: What they hold, by name.
        left_out: Other safetensors files of the folder, with the reason.
    """

    read: tuple[Path, ...]
    tensors: dict[str, Stored]
    left_out: dict[str, str]

    def value(self, name: str) -> torch.Tensor:
        """A tensor as it stands on disk."""
        with safe_open(self.tensors[name].file, framework="pt") as file:
            return file.get_tensor(name)


def tensor_files(folder: Path, config: Any) -> TensorFiles:
    """Finds and reads the headers of a folder's safetensors files.

    Raises:
        ModelError: no weights; pickled ones alone; a file that is damaged or missing; files that hold tensors which no
            file that transformers reads does, so that they would be lost.
    """
    read = _read_by_transformers(folder, config)
    tensors: dict[str, Stored] = {}
    for file in read:
        for name, stored in stored_tensors(file).items():
            if name in tensors:
                raise ModelError(
                    f"{folder}: the tensor {name} stands in {tensors[name].file.name} and in {file.name}; which of the "
                    "two is meant cannot be known. Keep the files of one checkpoint only."
                )
            tensors[name] = stored
    left_out = {
        file.name: _reason_beside(file, tensors, folder)
        for file in sorted(folder.glob("*.safetensors"))
        if file not in read
    }
    return TensorFiles(tuple(read), tensors, left_out)


def _read_by_transformers(folder: Path, config: Any) -> list[Path]:
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        if not isinstance(named, str) or Path(named).name != named or not named.endswith(".safetensors"):
            raise ModelError(
                f"{folder}: transformers_weights of config.json is {named!r}; the name of a .safetensors file of this "
                "folder was expected."
            )
        whole = folder / named
    else:
        whole = folder / SAFE_WEIGHTS_NAME
    if whole.is_file():
        return [whole]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return _indexed(index)
    pickled = sorted(p.name for ending in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(ending))
    if pickled and not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds a pickled checkpoint ({pickled[0]}), which can run code when it is opened; only "
            "safetensors are loaded. Convert it where you trust it: model.save_pretrained(NEW_FOLDER)."
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        raise ModelError(
            f"{folder} holds {', '.join(others[:3])}{' …' if len(others) > 3 else ''}, but neither {SAFE_WEIGHTS_NAME} "
            f"nor {SAFE_WEIGHTS_INDEX_NAME}, by which transformers finds the weights. Download the missing file, or "
            f"rename a single file of weights to {SAFE_WEIGHTS_NAME}."
        )
    raise ModelError(
        f"{folder} has a config but no weights (*.safetensors). Put them there, or load with weights='dummy'."
    )


def _indexed(index: Path) -> list[Path]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ModelError(
            f"{index} is damaged: the index of a sharded checkpoint was expected, with a weight_map of tensor names to "
            f"files ({type(error).__name__}). Download it again."
        ) from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ModelError(f"{index} names a file outside its folder ({outside[0][:200]!r}), which is never read.")
    missing = [name for name in names if not os.path.isfile(index.parent / name)]
    if missing or not names:
        raise ModelError(
            f"{index} names {len(names)} files, of which {len(missing)} are not there"
            f"{f' ({missing[0][:200]} …)' if missing else ''}. Download the whole checkpoint."
        )
    files = [index.parent / name for name in names]
    held: set[str] = set().union(*(stored_tensors(file) for file in files))
    lost = sorted(set(places) - held)
    if lost:
        raise ModelError(f"{index} lists {counted(lost, 'tensor')} that no file holds. Download the checkpoint again.")
    return files


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header.

    Raises:
        ModelError: it is none, or cut short.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            return {
                name: Stored(file, part.get_dtype(), tuple(int(size) for size in part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{file}: the weights cannot be loaded ({reason(error)}). The file is damaged or was cut short; "
            "download it again."
        ) from error


def _reason_beside(file: Path, tensors: dict[str, Stored], folder: Path) -> str:
    for pattern, why in _BESIDE:
        if re.fullmatch(pattern, file.stem):
            return why
    if _WEIGHTS_OF_TRAINING.search(file.stem):
        return "a state of training"
    there = stored_tensors(file)
    alone = [
        name
        for name, stored in there.items()
        if name not in tensors or (tensors[name].dtype, tensors[name].shape) != (stored.dtype, stored.shape)
    ]
    if alone:
        raise ModelError(
            f"{folder}: {file.name} holds {counted(alone, 'tensor')} that are not in the files that are read "
            "(model.safetensors, or those of its index); they would be lost without a word. Keep the files of one "
            "checkpoint in the folder, with their index."
        )
    other = [name for name, stored in there.items() if not _same_values(tensors[name], stored, name)]
    if other:
        raise ModelError(
            f"{folder}: {file.name} holds {counted(other, 'tensor')} with other values than the files that are read "
            "(model.safetensors, or those of its index): two sets of weights. Keep the files of one checkpoint only."
        )
    return "the same tensors once more"


def _same_values(one: Stored, other: Stored, name: str) -> bool:
    """Whether two files hold the same; of large tensors the first values along the first axis."""
    rows = max(1, 2**20 // max(1, math.prod(one.shape[1:]))) if one.shape else 0
    parts = []
    for stored in (one, other):
        with safe_open(stored.file, framework="pt") as file:
            part = file.get_slice(name)[:rows] if one.shape else file.get_tensor(name)
            parts.append(part.contiguous().reshape(-1).view(torch.uint8))
    return torch.equal(*parts)


def counted(names: list[str], what: str) -> str:
    """Names for reading: how many, and the first three."""
    first = ", ".join(name if len(name) <= 200 else f"{name[:200]}…" for name in sorted(names, key=_natural)[:3])
    return f"{len(names):,} {what}{'s' if len(names) != 1 else ''} ({first}{' …' if len(names) > 3 else ''})"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
