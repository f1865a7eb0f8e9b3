"""What is likely asked next, made while no page is: `outlook`, which is begun where the app is served."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

QUIET_S = 2.0
"""How long no page was being made before something is made ahead: the browser still draws what was sent."""
MOST_BYTES = 64 << 20
"""Of the tables that one page's outlook may fill: a matrix of 512 experts by layer is 20 MB."""

Task = Callable[[], int]
"""Makes one thing, and tells its bytes."""


class Outlook:
    """One thread that makes things between pages and begins none during one. Any thread may call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards everything below
        self._waiting: list[Task] = []
        self._left = 0
        self._pages = 0
        self._quiet_since = 0.0
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Starts the thread; a second call does nothing."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="outlook", daemon=True)
                self._thread.start()

    @contextmanager
    def page(self) -> Iterator[None]:
        """While it lasts nothing new is begun."""
        with self._changed:
            self._pages += 1
        try:
            yield
        finally:
            with self._changed:
                self._pages, self._quiet_since = self._pages - 1, time.monotonic()
                self._changed.notify_all()

    def likely(self, tasks: Iterable[Task]) -> None:
        """What is made next, the likeliest first, in place of what waits."""
        with self._changed:
            self._waiting, self._left = list(tasks), MOST_BYTES
            self._changed.notify_all()

    def take(self) -> Task:
        """The next task, as soon as there is one and it has been quiet."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting and not self._pages)
                wait_s = self._quiet_since + QUIET_S - time.monotonic()
                if wait_s <= 0:
                    return self._waiting.pop(0)
                self._changed.wait(wait_s)

    def _work(self) -> None:
        while True:
            task, n_bytes = self.take(), 0
            with suppress(Exception):  # a page that asks for it says why it cannot be
                n_bytes = task()
            with self._changed:
                self._left -= n_bytes
                if self._left < n_bytes:
                    self._waiting.clear()


outlook = Outlook()
