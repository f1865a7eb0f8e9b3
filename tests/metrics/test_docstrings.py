"""Every public metric says what it is, when it refuses, and where it comes from."""

import importlib
import inspect
import pkgutil

import pytest

import workbench.metrics


def public_functions():
    for module_info in pkgutil.iter_modules(workbench.metrics.__path__):
        if module_info.name.startswith("_"):
            continue
        module = importlib.import_module(f"workbench.metrics.{module_info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield pytest.param(function, id=f"{module_info.name}.{name}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_a_metric_names_its_source_its_errors_and_its_nans(function):
    text = inspect.getdoc(function) or ""
    for section in ("Source:", "Raises:", "NaN"):
        assert section in text, f"{function.__name__} has no {section!r} in its docstring"
    assert text.split("Source:")[1].strip(), f"{function.__name__} names no source"


@pytest.mark.parametrize("function", list(public_functions()))
def test_data_come_first_and_everything_else_by_keyword(function):
    taken = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(p.default is p.empty for p in taken), "an option can be given by position"
    assert len(taken) <= 2, "more than two positional arguments"
