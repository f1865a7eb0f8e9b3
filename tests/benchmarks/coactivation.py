"""How much faster co-activation is counted than by a Python loop over tokens and pairs, in the same run.

    python -m tests.benchmarks.coactivation [--tokens 200000] [--experts 64] [--top-k 8] [--rounds 5]

Two loops: one adds to a NumPy matrix, as scripts do, the other to nested lists with all that can be taken out of the
inner loop, the fastest that Python does. All count the same ids and must agree; rounds are interleaved, and a ratio is
that of the medians.
"""

import argparse
import itertools
import time

import numpy as np

from tests.metrics.test_sets import random_sets
from workbench.metrics.structure import pair_counts


def by_matrix(ids_TK: np.ndarray, n_experts: int) -> np.ndarray:
    """Every token, every pair, into a matrix."""
    pairs_EE = np.zeros((n_experts, n_experts), dtype=np.int64)
    for token in ids_TK.tolist():
        for i, j in itertools.product(token, token):
            pairs_EE[i, j] += 1
    return pairs_EE


def by_lists(ids_TK: np.ndarray, n_experts: int) -> np.ndarray:
    """Every token, every pair, into lists."""
    pairs = [[0] * n_experts for _ in range(n_experts)]
    for token in ids_TK.tolist():
        for i in token:
            row = pairs[i]
            for j in token:
                row[j] += 1
    return np.array(pairs)


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    ids_TK = random_sets(np.random.default_rng(0), asked.tokens, n_experts=asked.experts, top_k=asked.top_k)
    ids_TK = ids_TK.astype(np.uint8 if asked.experts <= 256 else np.uint16)  # as a recording gives them
    ways = {
        "loop into a matrix": by_matrix,
        "loop into lists": by_lists,
        "pair_counts": lambda ids_TK, n_experts: pair_counts(ids_TK, n_experts=n_experts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.rounds):
        counted = []
        for name, count in ways.items():
            started = time.perf_counter()
            counted.append(count(ids_TK, asked.experts))
            seconds[name].append(time.perf_counter() - started)
        for other_EE in counted[1:]:
            np.testing.assert_array_equal(counted[0], other_EE)
    ours = np.median(seconds["pair_counts"])
    print(f"{asked.tokens:,} tokens, {asked.top_k} of {asked.experts}, medians of {asked.rounds} rounds")
    for name, each in seconds.items():
        print(f"{name:18s} {np.median(each) * 1e3:8.1f} ms, {np.median(each) / ours:5.0f} times pair_counts")


if __name__ == "__main__":
    main()
