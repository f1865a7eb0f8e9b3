"""What a recording that is asked several times keeps of what it decoded. Used by `Recording.keeping`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa


class Kept:
    """What was decoded, up to a number of bytes: numbers by file or document, and whole tables by their files.

    The first that come stay: every question starts over, so that what was used longest ago is what is needed next.

    Args:
        n_bytes: As many bytes as are kept at most.
    """

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes
        self._columns: dict[Path, dict[str, np.ndarray]] = {}
        self._frames: dict[tuple[Path, ...], pd.DataFrame] = {}

    def of(self, file: Path) -> dict[str, np.ndarray]:
        """The columns that are kept of a file."""
        return self._columns.get(file, {})

    def keep(self, file: Path, decoded: dict[str, np.ndarray], *, kinds: str = "iu") -> None:
        """Keeps the columns of these kinds that still find room, and makes them read-only."""
        for name, values in decoded.items():
            if values.dtype.kind in kinds and values.nbytes <= self._left:
                values.flags.writeable = False
                self._columns.setdefault(file, {})[name] = values
                self._left -= values.nbytes

    def frame(self, files: tuple[Path, ...]) -> pd.DataFrame | None:
        """The table of these files, if it is kept."""
        return self._frames.get(files)

    def keep_frame(self, files: tuple[Path, ...], frame: pd.DataFrame) -> None:
        """Keeps a table if it finds room."""
        n_bytes = int(frame.memory_usage(index=False, deep=True).sum())
        if n_bytes <= self._left:
            self._frames[files] = frame
            self._left -= n_bytes


def decoded_column(column: pa.ChunkedArray) -> np.ndarray:
    """A column of a part as numbers: [T], or [T, width] of a list column."""
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
        return np.concatenate(chunks) if len(chunks) != 1 else chunks[0]
    return column.to_numpy()
