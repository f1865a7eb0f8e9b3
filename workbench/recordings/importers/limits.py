"""Bounds on what a foreign file may ask for: what it claims to hold is compared with them before it is read.

A few bytes can claim any number of rows or layers. Sizes are bounded by the free memory, so that a large machine reads
large traces; numbers of layers, experts and rows by what no model has.
"""

from pathlib import Path

from workbench.errors import TraceError

MOST_LAYERS = 10_000
MOST_EXPERTS = 65_536  # ids are stored in 16 bits
MOST_COUNTERS = 2**22  # layers x experts: what is counted of every document
MOST_ROWS = 2**24  # of a document: no context is as long
MOST_LINE_BYTES = 2**26  # of a line of JSON: 2,048 tokens x 64 layers x 8 ids are 4 MB
_SMALL_BYTES = 2**28
_MOST_TIMES = 256  # ids that are chosen by a router compress some ten times


def free_bytes() -> int:
    """Memory that is free."""
    import psutil

    return int(psutil.virtual_memory().available)


def refuse_claim(file: Path, claimed_bytes: int, *, what: str, advice: str) -> None:
    """Refuses a file whose content would not fit into half of the free memory.

    Raises:
        TraceError: says what the file claims and what is free.
    """
    free = free_bytes()
    if claimed_bytes > free // 2:
        raise TraceError(
            f"{file} has {file.stat().st_size:,} bytes and claims {what} of {claimed_bytes:,} bytes; {free:,} are "
            f"free, and half of them at most are used. {advice}"
        )


def refuse_ratio(file: Path, claimed_bytes: int, *, what: str) -> None:
    """Refuses a file that claims many times what choices of experts compress to.

    Raises:
        TraceError: says what the file claims.
    """
    if claimed_bytes > max(_SMALL_BYTES, _MOST_TIMES * file.stat().st_size):
        raise TraceError(
            f"{file} has {file.stat().st_size:,} bytes and claims {what} of {claimed_bytes:,} bytes: over "
            f"{_MOST_TIMES} times as much, which choices of experts never compress to. Write the file again from the "
            "tool that made it."
        )
