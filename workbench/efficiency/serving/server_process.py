"""A `transformers serve` that never outlives who started it: `python -m` this module, and ARGUMENTS.

Takes the arguments of `transformers serve`. Its standard input is a pipe that the starter holds open: when that ends,
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
    from transformers.cli.transformers import main

    sys.argv = ["transformers", "serve", *sys.argv[1:]]
    main()
