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

No pickled array is opened. Axes: N sequences, T tokens, L layers, K chosen.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from workbench.errors import TraceError
from workbench.importers.trace import Trace, TracedDocument, source_files

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
    read = {file: _load_all(file) if file.suffix == ".npz" else {"ids": _load(file)} for file in files}
    return _trace("numpy", files, read, unit="documents")


def _trace(name: str, files: tuple[Path, ...], read: dict[Path, dict[str, np.ndarray]], *, unit: str) -> Trace:
    for file, arrays in read.items():
        ids = arrays["ids"]
        if ids.dtype.kind not in "iu" or ids.ndim not in (3, 4):
            raise TraceError(
                f"{file} has the shape {list(ids.shape)} and the type {ids.dtype}; integers [tokens, layers, k], or "
                "[sequences, tokens, layers, k], were wanted."
            )
        _refuse_lengths(file, arrays)

    def documents() -> Iterator[TracedDocument]:
        for file, arrays in read.items():
            yield from _documents(file, arrays)

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
    )


def _load(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise TraceError(_unreadable(file, error)) from error


def _load_all(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise TraceError(_unreadable(file, error)) from error
    unknown = [key for key in arrays if key not in _KEYS]
    if unknown or "ids" not in arrays:
        raise TraceError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; ids, and of {', '.join(_KEYS[1:])}, was wanted."
        )
    return arrays


def _unreadable(file: Path, error: Exception) -> str:
    return (
        f"{file} is no array that can be read ({str(error).splitlines()[0]}); arrays of Python objects are never "
        "opened, for they are pickles. Save integers with numpy.save."
    )


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
                "wanted, beside ids as [tokens, layers, k]."
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
            where=f"{file.name}, document {name}" if name else file.name,
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
            raise TraceError(f"{file}: document {name} begins again at row {start}; sort the rows by document.")
        seen.add(name)
        yield start, end, name
