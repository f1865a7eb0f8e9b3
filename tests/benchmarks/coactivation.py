"""How much faster co-activation is counted than by a Python loop over tokens and pairs, in the same run.

    python -m tests.benchmarks.coactivation [--tokens 20000] [--experts 64] [--top-k 8] [--rounds 5]

Both count the same ids and must agree; rounds are interleaved, and the ratio is that of the medians.
"""

import argparse
import time

import numpy as np

from tests.metrics.test_sets import random_sets
from workbench.metrics.structure import pair_counts


def by_loop(ids_TK: np.ndarray, n_experts: int) -> np.ndarray:
    """Every token, every pair."""
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
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    ids_TK = random_sets(np.random.default_rng(0), asked.tokens, n_experts=asked.experts, top_k=asked.top_k)
    ids_TK = ids_TK.astype(np.uint8 if asked.experts <= 256 else np.uint16)  # as a recording gives them
    loop_s, ours_s = [], []
    for _ in range(asked.rounds):
        started = time.perf_counter()
        slow_EE = by_loop(ids_TK, asked.experts)
        between = time.perf_counter()
        fast_EE = pair_counts(ids_TK, n_experts=asked.experts)
        loop_s.append(between - started)
        ours_s.append(time.perf_counter() - between)
        np.testing.assert_array_equal(fast_EE, slow_EE)
    slow, fast = np.median(loop_s), np.median(ours_s)
    print(
        f"{asked.tokens:,} tokens, {asked.top_k} of {asked.experts}: loop {slow * 1e3:.0f} ms, pair_counts "
        f"{fast * 1e3:.1f} ms, ratio {slow / fast:.0f} (medians of {asked.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
