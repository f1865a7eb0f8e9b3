"""The metrics that analyses answer with, as each declares them in `METRICS`: for pages, and for docs/metrics.md."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator

import workbench.metrics
from analyses import catalogue

_TOOLS = ("sets", "balance")
"""Modules of selections, intervals and tests, which metrics are made of or stand beside."""


def named(metric: Callable) -> str:
    """A metric as `module.name`."""
    return f"{metric.__module__.rpartition('.')[2]}.{metric.__name__}"


def metrics() -> Iterator[tuple[str, str]]:
    """Each metric as `module.name`, and its docstring."""
    for info in pkgutil.iter_modules(workbench.metrics.__path__):
        if info.name in _TOOLS:
            continue
        module = importlib.import_module(f"workbench.metrics.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith(("_", "refuse")):
                yield f"{info.name}.{name}", inspect.getdoc(function) or ""


def analyses_of(metric: str) -> list[str]:
    """The analyses that answer with a metric, by name."""
    return [name for name in catalogue.names() if metric in map(named, catalogue.get(name).METRICS)]


def definitions(analysis: str) -> dict[str, tuple[str, str]]:
    """The metrics that an analysis answers with: of each, by `module.name`, its definition and its source, in words."""
    found = {}
    for metric in sorted(catalogue.get(analysis).METRICS, key=named):
        doc = inspect.getdoc(metric) or ""
        said, _, _ = doc.partition("\n\nArgs:")
        said, _, _ = said.partition("\n\nRaises:")
        said, _, _ = said.partition("\n\nReturns:")
        _, _, source = doc.partition("Source:\n")
        found[named(metric)] = (said, " ".join(source.split()))
    return found
