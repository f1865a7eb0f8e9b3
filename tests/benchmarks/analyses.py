"""How long the analyses of a large recording take, and in how much memory.

    python -m tests.benchmarks.analyses [--folder FOLDER] [--names expert_load load_balance]

Makes synthetic recordings (28 layers, 64 experts, top-8, 5 domains of 400 documents) of 250 thousand and of one million
tokens, and runs each analysis in a process of its own: import, run, tables and figure specs are timed apart, peak
memory is the process's. Digests are not checked here (`workbench verify` does), rows and sizes are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.synthetic import make

MEASURED = """
import json, resource, sys, time
from analyses import catalogue
from workbench.recordings.recording import Recording
module = catalogue.get(sys.argv[1])
recording = Recording.open(sys.argv[2])
started = time.perf_counter()
result = module.run(recording)
run_s = time.perf_counter() - started
module.tables(result)
module.figures(result)
total_s = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"run_s": run_s, "total_s": total_s, "peak_gib": peak}))
"""


def measure(name: str, recording: Path) -> dict[str, float]:
    """Seconds and peak memory of one analysis in a fresh process."""
    command = [sys.executable, "-c", MEASURED, name, str(recording)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Prints a line per analysis and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the synthetic recordings; temporary unless given")
    parser.add_argument("--names", nargs="+", default=["expert_load", "load_balance"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        for n_tokens in (250_000, 1_000_000):
            recording = make(folder / f"synthetic-{n_tokens}", n_tokens=n_tokens)
            for name in asked.names:
                rounds = [measure(name, recording.path) for _ in range(asked.rounds)]
                run, total = sorted(one["run_s"] for one in rounds), sorted(one["total_s"] for one in rounds)
                print(
                    f"{name}, {recording.n_tokens:,} tokens: {run[0]:.2f}–{run[-1]:.2f} s, with figure specs "
                    f"{total[0]:.2f}–{total[-1]:.2f} s, peak {max(one['peak_gib'] for one in rounds):.2f} GiB, "
                    f"{asked.rounds} rounds",
                    flush=True,
                )


if __name__ == "__main__":
    main()
