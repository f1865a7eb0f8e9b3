"""Small traces in the true shape of each format, made by hand or from a recording."""

import json
from pathlib import Path

import numpy as np
import torch

from workbench.recordings.recording import Recording

E, K, LAYERS = 4, 2, (1, 2)  # layer 0 is dense
IDS_TLK = np.array(
    [
        [[3, 1], [0, 2]],
        [[1, 0], [2, 3]],
        [[2, 3], [3, 0]],
        [[1, 3], [0, 1]],
        [[0, 2], [2, 1]],
    ]
)  # five tokens, two layers, k = 2
TOKENS = [7, 8, 9, 7, 6]
COUNTS_LE = np.array([[2, 3, 2, 3], [3, 2, 3, 2]])  # of all five, by hand


def numpy_file(path: Path, **arrays) -> Path:
    """An `.npz` with two documents of three and two tokens."""
    given = {
        "ids": IDS_TLK,
        "tokens": np.array(TOKENS),
        "documents": np.array([4, 4, 4, 9, 9]),
        "layers": np.array(LAYERS),
    }
    np.savez(path, **{key: value for key, value in (given | arrays).items() if value is not None})
    return path


def olmoe_line(ids_TLK: np.ndarray = IDS_TLK, tokens: list[int] | None = None) -> str:
    """A line of c4_results.jsonl."""
    tokens = TOKENS if tokens is None else tokens
    ids_TKL = ids_TLK.transpose(0, 2, 1)
    return json.dumps({"input_ids": tokens, "predicted_token_ids": [0] * len(tokens), "exp_ids": ids_TKL.tolist()})


def sglang_record(ids_TLK: np.ndarray, tokens: list[int], *, n_layers: int = 3, layers=LAYERS, **other) -> dict:
    """A record of mode per_token: all decoder layers, eight columns, -1 where there is nothing."""
    ids_LTK = np.full((n_layers, len(tokens), 8), -1, dtype=np.int32)
    ids_LTK[list(layers), :, : ids_TLK.shape[2]] = ids_TLK.transpose(1, 0, 2)
    return {
        "forward_pass_id": 1, "rank": 0, "gatherer_key": "primary", "input_ids": tokens,
        "positions": list(range(len(tokens))), "extend_seq_lens": [len(tokens)], "forward_mode": 1,
        "topk_ids_of_layer": torch.from_numpy(ids_LTK), "misc_objects": [],
        "global_physical_count": torch.zeros(n_layers, E, dtype=torch.int32),
    } | other  # fmt: skip


def sglang_file(path: Path, *records: dict, n_layers: int = 3, n_experts: int = E, **other) -> Path:
    """A dump of mode per_token whose physical experts are the logical ones."""
    same = torch.arange(n_experts, dtype=torch.int64).repeat(n_layers, 1)
    torch.save({"records": list(records), "last_physical_to_logical_map": same} | other, path)
    return path


def stat_file(path: Path, count_PLE: np.ndarray) -> Path:
    """A dump of mode stat."""
    count = torch.from_numpy(count_PLE.astype(np.int32))
    torch.save({"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}, path)
    return path


def ids_of(recording: Recording) -> np.ndarray:
    """Ids of all layers, [T, L, K]."""
    return np.stack([recording.ids(layer) for layer in recording.moe_layers], axis=1).astype(np.int64)


def documents_of(recording: Recording) -> list[tuple[np.ndarray, list[int]]]:
    """Ids [T, L, K] and token ids of each document, in the order of the recording's rows."""
    frame, ids_TLK = recording.tokens(), ids_of(recording)
    found = []
    for number in recording.documents()["document"]:
        rows = np.flatnonzero(frame["document"] == number)
        found.append((ids_TLK[rows], frame["token"].to_numpy()[rows].tolist()))
    return found
