"""Expert ids in NumPy files: `routed_experts` of vLLM and SGLang, and plain `.npy` or `.npz`.

What `routed_experts` holds was read in vLLM's documentation (docs/training/routed_experts_replay.md of v0.21, and the
later training/routed_experts.md) and SGLang's (OpenAI-compatible API, "Returning Routed Experts"); facts only. Both
give, of each request, integers [tokens, layers, k] of logical experts. Tokens are those that went through a forward
pass: the last sampled one did not, so a sequence of prompt and completion has one row less than tokens; vLLM 0.21 gives
prompt and completion apart (`prompt_routed_experts`, `routed_experts`). Positions that a prefix cache served are -1.
Layers are the MoE layers in some versions and all decoder layers, with dense ones left at 0, in others: say which with
`--layers` or `--model`. The order within a token is the kernel's, not that of the weights. Whoever has the response
saves the array (`numpy.save`; vLLM's HTTP answer is a base64 text of the `.npy` file, SGLang's of the bare int32
numbers).

- `routed-experts`: a `.npy` file [T, L, K] of one sequence, a stack [N, T, L, K] of padded ones, or a folder of such
  files. Token ids, and where the prompt ends, come from `--documents`.
- `numpy`: the same, or an `.npz` file with `ids` [T, L, K] and, where known, `weights` [T, L, K] (in the order of the
  ids), `tokens` [T], `positions` [T], `documents` [T] (a number or name for each token, documents in one piece each),
  and `layers` [L]. Without `documents` the file is one document.

No pickled array is opened, and no array whose header claims more than its file holds. `.npy` files are read as they are
needed; an `.npz` is read whole, so it must fit into the memory. Axes: N sequences, T tokens, L layers, K chosen.
"""

import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from workbench.errors import TraceError
from workbench.recordings.importers.limits import MOST_ROWS, refuse_claim
from workbench.recordings.importers.trace import Trace, TracedDocument, foreign, shown, source_files

_ADVICE = (
    "arrays of Python objects are never opened, for they are pickles. Save integers with numpy.save, and make sure "
    "that the file is whole"
)
_KEYS = ("ids", "weights", "tokens", "positions", "documents", "layers")


def read_routed_experts(path: Path) -> Trace:
    """Opens `routed_experts` arrays.

    Raises:
        TraceError: a file is no array of integers [T, L, K] or [N, T, L, K].
    """
    files = source_files(path, ".npy")
    return _trace("routed-experts", files, {file: {"ids": _load(file)} for file in files}, unit="sequences")


def read_numpy(path: Path) -> Trace:
    """Opens plain arrays.

    Raises:
        TraceError: a file is no such array, has a key that is not known, or its arrays disagree in length.
    """
    files = source_files(path, ".npy", ".npz")
    read: dict[Path, dict[str, np.ndarray]] = {}
    held_bytes = 0
    for file in files:
        read[file] = _load_all(file, held_bytes) if file.suffix == ".npz" else {"ids": _load(file)}
        held_bytes += sum(array.nbytes for array in read[file].values()) if file.suffix == ".npz" else 0
    return _trace("numpy", files, read, unit="documents")


def _trace(name: str, files: tuple[Path, ...], read: dict[Path, dict[str, np.ndarray]], *, unit: str) -> Trace:
    for file, arrays in read.items():
        ids = arrays["ids"]
        if ids.dtype.kind not in "iu" or ids.ndim not in (3, 4):
            raise TraceError(
                f"{file} has the shape {list(ids.shape)} and the type {ids.dtype}; integers [tokens, layers, k], or "
                f"[sequences, tokens, layers, k], were expected.{_of_other(ids)}"
            )
        if ids.ndim == 4 and ids.size == 0:
            raise TraceError(f"{file} has the shape {list(ids.shape)}, so no token; sequences of tokens were expected.")
        _refuse_lengths(file, arrays)

    def documents() -> Iterator[TracedDocument]:
        for file, arrays in read.items():
            yield from _documents(file, arrays)

    def name_lists() -> list[tuple[str, ...]]:
        named = [document.name for document in documents()]
        inner = [name.removeprefix(f"{file.stem}-") for file, name in zip(_files_of(read), named, strict=True)]
        return list(zip(named, inner, strict=True)) if len(set(inner)) == len(inner) else [(name,) for name in named]

    first = next(iter(read.values()))
    layers = first.get("layers")
    return Trace(
        format=name,
        files=files,
        documents=documents,
        n_columns=first["ids"].shape[-2],
        top_k=first["ids"].shape[-1],
        layers=tuple(map(int, layers)) if layers is not None else None,
        unit=unit,
        name_lists=name_lists,
    )


def _files_of(read: dict[Path, dict[str, np.ndarray]]) -> Iterator[Path]:
    """Of each document its file."""
    for file, arrays in read.items():
        for _ in _documents(file, arrays):
            yield file


def _of_other(ids: np.ndarray) -> str:
    """What to do with an array of another shape or type that people have."""
    if ids.dtype.kind in "iu" and ids.ndim == 1:
        return " It is flat: give it its shape with reshape(-1, layers, k)."
    if ids.dtype.kind == "f":
        return " Router logits are not read: save the ids that were chosen of them."
    return ""


def _load(file: Path) -> np.ndarray:
    with foreign(file, _ADVICE):
        with file.open("rb") as opened:
            needed = _refuse_header(file, opened, file.stat().st_size, "the array")
        array = np.load(file, mmap_mode="r", allow_pickle=False) if needed else np.load(file, allow_pickle=False)
    assert isinstance(array, np.ndarray)  # the header is that of one
    return array


def _refuse_header(file: Path, opened: IO[bytes], size_bytes: int, what: str) -> int:
    """Bytes of the elements that a header claims, which must be those that follow it.

    Raises:
        TraceError: they are not, or are Python objects.
    """
    version = npy.read_magic(opened)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(opened)
    if dtype.hasobject:
        raise TraceError(f"{file} cannot be read ({what} is of Python objects); {_ADVICE}.")
    claimed = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != size_bytes - opened.tell():
        raise TraceError(
            f"{file}: the header of {what} claims {claimed:,} bytes ({dtype} {list(shape)}) and "
            f"{size_bytes - opened.tell():,} are there; it was cut short, or more than one array is in it. Save it "
            "again."
        )
    return claimed


def _load_all(file: Path, held_bytes: int) -> dict[str, np.ndarray]:
    with foreign(file, _ADVICE), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        unknown = [name for name in names if name not in _KEYS]
        if unknown or "ids" not in names or len(set(names)) < len(names):
            logits = " Router logits are not read: save the ids that were chosen of them." if "logits" in names else ""
            raise TraceError(
                f"{file} holds {', '.join(map(shown, names[:12])) or 'nothing'}; ids, and of {', '.join(_KEYS[1:])}, "
                f"was expected.{logits}"
            )
        refuse_claim(
            file,
            held_bytes + sum(member.file_size for member in members),
            what="with the files before it arrays",
            advice="Save ids alone with numpy.save: a .npy file is read as it is needed.",
        )
        for member in members:
            with archive.open(member) as opened:
                _refuse_header(file, opened, member.file_size, member.filename)
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in names}


def _refuse_lengths(file: Path, arrays: dict[str, np.ndarray]) -> None:
    shape = arrays["ids"].shape
    wanted = {
        "weights": shape,
        "layers": shape[-2:-1],
        **dict.fromkeys(("tokens", "positions", "documents"), shape[:1]),
    }
    for key, array in arrays.items():
        if key != "ids" and (array.shape != wanted[key] or len(shape) == 4):
            raise TraceError(
                f"{file}: {key} has the shape {list(array.shape)} and ids {list(shape)}; {list(wanted[key])} was "
                "expected, beside ids as [tokens, layers, k]."
            )
        if key in ("layers", "tokens", "positions") and array.dtype.kind not in "iu":
            raise TraceError(f"{file}: {key} is of {array.dtype}; integers were expected.")
        if key == "documents" and array.dtype.kind not in "iuU":
            raise TraceError(f"{file}: documents is of {array.dtype}; integers or text were expected.")
    rows = shape[-3]
    if rows > MOST_ROWS and "documents" not in arrays:
        raise TraceError(
            f"{file} has {rows:,} rows in one document; {MOST_ROWS:,} at most were expected. Say with documents "
            "[tokens] in an .npz which rows belong together, or save a file for each."
        )


def _documents(file: Path, arrays: dict[str, np.ndarray]) -> Iterator[TracedDocument]:
    ids = arrays["ids"]
    if ids.ndim == 4:
        for number, ids_TLK in enumerate(ids):
            yield TracedDocument(where=f"{file.name}, sequence {number}", name=f"{file.stem}-{number}", ids_TLK=ids_TLK)
        return
    named_T = arrays.get("documents")
    for start, end, name in runs(named_T, file) if named_T is not None else [(0, len(ids), "")]:
        kept = {key: array[start:end] for key, array in arrays.items() if key not in ("layers", "documents")}
        yield TracedDocument(
            where=f"{file.name}, document {shown(name)}" if name else file.name,
            name=f"{file.stem}-{name}" if name else file.stem,
            ids_TLK=kept["ids"],
            weights_TLK=kept.get("weights"),
            token_T=kept.get("tokens"),
            position_T=kept.get("positions"),
            first_row=start,
        )


def runs(named_T: np.ndarray, file: Path) -> Iterator[tuple[int, int, str]]:
    """Start, end and name of each document, of the name of each token's.

    Raises:
        TraceError: a document's tokens are not in one piece.
    """
    starts = [0, *(np.flatnonzero(named_T[1:] != named_T[:-1]) + 1).tolist()] if len(named_T) else []
    seen: set[str] = set()
    for start, end in zip(starts, [*starts[1:], len(named_T)], strict=True):
        name = str(named_T[start])
        if name in seen:
            raise TraceError(f"{file}: document {shown(name)} begins again at row {start}; sort the rows by document.")
        if end - start > MOST_ROWS:
            raise TraceError(
                f"{file}: document {shown(name)} has {end - start:,} rows; {MOST_ROWS:,} at most were expected."
            )
        seen.add(name)
        yield start, end, name
