"""A `transformers serve` that never outlives who started it: `python -m` this module, and `serve ARGUMENTS`.

Takes the words of `transformers`. Its standard input is a pipe that the starter holds open: when that ends,
because the starter closed it, crashed or was killed, the process ends too.
"""

import os
import sys
import threading


def _end_with_the_starter() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # from a thread, while requests may be running: there is nothing to save


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    from transformers.cli.transformers import app  # not its `main`, which first asks the network for a newer version

    app(prog_name="transformers")
