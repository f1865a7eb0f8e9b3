"""What attention statistics cost beside plain attention and beside a matrix of weights, and in how much memory.

    python -m tests.benchmarks.attention [--rounds 5]

One layer of 8 heads, width 64, float32, causal, one thread; rounds are interleaved. Memory is that of a process per
length.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from workbench.capture.attention.calls import Call
from workbench.capture.attention.tiles import Row, query_statistics


def call(n_tokens: int, n_heads: int = 8, width: int = 64) -> Call:
    """Random queries and keys."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, n_heads, n_tokens, width)
    return Call(0, query, key, None, width**-0.5, None, None, None, True)


def from_matrix(one: Call) -> dict[str, torch.Tensor]:
    """The same statistics from a matrix of weights."""
    n = one.query.shape[2]
    score = (one.query[0] @ one.key[0].transpose(-1, -2)) * one.scaling
    score = score.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    weight = score.softmax(-1)
    diagonal = weight.diagonal(dim1=-2, dim2=-1)
    return {
        "entropy": torch.special.entr(weight).sum(-1),
        "participation": 1 / (weight**2).sum(-1),
        "first": weight[..., 0],
        "first4": weight[..., :4].sum(-1),
        "self": diagonal,
        "previous": weight.diagonal(offset=-1, dim1=-2, dim2=-1),
        "distance": torch.arange(n) - weight @ torch.arange(n, dtype=torch.float32),
    }


def peak_mib(n_tokens: int) -> float:
    """Memory that the statistics add at their peak, in MiB, in a process of its own; Linux alone."""
    code = (
        "import re, torch\n"
        "from pathlib import Path\n"
        "from tests.benchmarks.attention import call\n"
        "from workbench.capture.attention.tiles import Row, query_statistics\n"
        "def kib(name): return int(re.search(name + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        f"torch.set_num_threads(1); query_statistics(Row(call(256), 0, 0, 256)); one = call({n_tokens})\n"
        "Path('/proc/self/clear_refs').write_text('5'); before = kib('VmRSS')  # 5: the peak begins anew\n"
        f"query_statistics(Row(one, 0, 0, {n_tokens}))\n"
        "print((kib('VmHWM') - before) / 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    one = call(2048)
    ways = {
        "plain": lambda: torch.nn.functional.scaled_dot_product_attention(one.query, one.key, one.key, is_causal=True),
        "statistics": lambda: query_statistics(Row(one, 0, 0, 2048)),
        "matrix": lambda: from_matrix(one),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if round_:
                times[name].append(time.perf_counter() - started)
    found, expected = query_statistics(Row(one, 0, 0, 2048)), from_matrix(one)
    for name, values in expected.items():
        got = found[name][..., 1:] if name == "previous" else found[name]
        assert torch.allclose(got, values, rtol=1e-4, atol=2e-3), name
    for what, over, under in (("a matrix's time over ours", "matrix", "statistics"),
                              ("our time over plain attention's", "statistics", "plain")):  # fmt: skip
        ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
        print(
            f"T = 2,048: {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}, {rounds} rounds)"
        )
    for n_tokens in (2048, 8192, 32_768):
        matrix_gib = 8 * n_tokens**2 * 4 / 2**30
        print(f"T = {n_tokens:,}: +{peak_mib(n_tokens):,.0f} MiB at the peak; a matrix: {matrix_gib:.1f} GiB")
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
