"""A recording whose token rows stand, or are numbered, otherwise than the model's run left them: as traces' rows do."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.recordings.recording import Recording


def rewritten(recording: Recording, out: Path, change: Callable[[pa.Table], pa.Table]) -> Recording:
    """A copy whose parts of tokens are changed; it is not verified, so its digests are those of the original."""
    shutil.copytree(recording.path, out)
    for file in (out / "tokens").glob("part-*.parquet"):
        pq.write_table(change(pq.read_table(file)), file)
    return Recording(out, recording.manifest)


def interleaved(recording: Recording, out: Path) -> Recording:
    """Rows in another order: those of several documents alternate, and none is by position."""
    return rewritten(recording, out, lambda part: part.take(np.random.default_rng(len(part)).permutation(len(part))))


def numbered(recording: Recording, out: Path, position_of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Recording:
    """Other positions in the same rows, from the document numbers and the positions."""

    def change(part: pa.Table) -> pa.Table:
        position_T = position_of(part["document"].to_numpy(), part["position"].to_numpy())
        at = part.schema.get_field_index("position")
        return part.set_column(at, "position", pa.array(position_T.astype(np.int32)))

    return rewritten(recording, out, change)


def placeless(recording: Recording) -> Recording:
    """As of a trace that does not say where its tokens stand."""
    source = {"format": "numpy", "name": "", "unit": "documents", "lacks": ["position"]}
    said = copy.copy(recording)
    said.manifest = {**recording.manifest, "source": source}
    return said
