"""How much may be uploaded: by one session and one visitor at once, by all together, and by a visitor in an hour.

Streamlit keeps an uploaded file in memory until its session ends. The app has one uploader, which takes one file, so of
each session one file is kept, the latest.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from workbench.jobs.limits import LARGEST_UPLOAD, Allowance, again

LARGEST_BYTES = LARGEST_UPLOAD + 2**16  # of a request: the file and what frames it
VISITOR_BYTES = 3 * LARGEST_BYTES
TOTAL_BYTES = 8 * LARGEST_BYTES
_LEAST_COUNTED = 2**16  # so that many small files count as well

Place = tuple[str, str]
"""A session, and a file of it."""


@dataclass
class Uploads:
    """Counts what is kept and what is on its way. Any thread may call.

    Attributes:
        held: The bytes of every file that is kept.
        release: Forgets a file that is kept.
        bytes_per_hour: Of one visitor that has a name; None for no limit.
        visitor_bytes: Of one visitor that has a name, kept and on their way.
        total_bytes: Of all, kept and on their way.
    """

    held: Callable[[], Mapping[Place, int]]
    release: Callable[[str, str], None]
    bytes_per_hour: int | None = None
    visitor_bytes: int = VISITOR_BYTES
    total_bytes: int = TOTAL_BYTES
    _coming: dict[Place, int] = field(default_factory=dict)
    _visitors: dict[Place, str] = field(default_factory=dict)  # who sent what is kept or on its way
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._hour = Allowance(self.bytes_per_hour, 3600) if self.bytes_per_hour is not None else None

    def begin(self, visitor: str, session: str, file: str, n_bytes: int) -> tuple[int, str] | None:
        """Makes room for a file that is about to be sent: HTTP status and sentence where there is none, and else None.

        Every file that was begun is to be ended, whatever became of it.
        """
        if n_bytes > LARGEST_BYTES:
            return 413, f"The file is larger than {LARGEST_UPLOAD:,} bytes; put it into a folder of corpora instead."
        with self._lock:
            held = dict(self.held())
            self._visitors = {at: who for at, who in self._visitors.items() if at in held or at in self._coming}
            if any(at[0] == session for at in self._coming):
                return 429, "Another file of this page is on its way; wait until it is there, and try again."
            before = [at for at in held if at[0] == session]  # what this file takes the place of
            rest = {at: n for at, n in held.items() if at not in before} | self._coming
            if sum(rest.values()) + n_bytes > self.total_bytes:
                return 503, "Files of other visitors fill the memory for uploads; try again in some minutes."
            mine = sum(n for at, n in rest.items() if visitor and self._visitors.get(at) == visitor)
            if visitor and mine + n_bytes > self.visitor_bytes:
                return 429, "Files of yours in other tabs fill what one visitor may upload at once; close such a tab."
            if visitor and self._hour and (wait_s := self._hour.take(visitor, max(n_bytes, _LEAST_COUNTED))):
                return 429, f"{self.bytes_per_hour:,} bytes may be uploaded by you in an hour; {again(wait_s)}"
            for at in before:
                self.release(*at)
            self._coming[session, file] = n_bytes
            self._visitors[session, file] = visitor
        return None

    def end(self, session: str, file: str) -> None:
        """Notes that a file is there, or will never be."""
        with self._lock:
            self._coming.pop((session, file), None)
