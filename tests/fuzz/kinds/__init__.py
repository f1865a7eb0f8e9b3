"""The kinds of input, each a module with `prepare(base)`, which writes what is damaged, and `run(trial)`."""

from importlib import import_module
from typing import Any

SHARES = {
    "model": 18, "weights": 10, "tokenizer": 8, "corpus": 12, "importer": 18, "recording": 20, "measurement": 5,
    "arguments": 7, "address": 2, "disk": 2, "host": 2, "planted": 0,
}  # fmt: skip
"""Of all inputs, in parts; 0 for what is run only where it is named."""


def module(name: str) -> Any:
    """A kind by name."""
    return import_module(f"tests.fuzz.kinds.{name}")
