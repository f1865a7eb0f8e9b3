"""The rules of the tree: which folder may import which, how large folders and files may grow, what needs no torch."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    ("workbench.errors", "workbench.paths"),
    ("workbench.extras", "workbench.version"),
    ("workbench.files", "workbench.figures", "workbench.statistics"),
    ("workbench.metrics", "workbench.export"),
    ("workbench.models",),
    ("workbench.recordings",),
    ("workbench.capture",),
    ("workbench.efficiency",),
    ("workbench.jobs",),
    ("analyses",),
    ("pages", "workbench.cli"),
)
"""From the ground up: what stands on a floor imports from its own folder and from the floors below."""
HEAVY = {"torch", "transformers", "nnsight"}
MAY_IMPORT_HEAVY = (
    "workbench.models", "workbench.capture", "workbench.efficiency",
    "workbench.recordings.vocabulary", "workbench.recordings.importers.sglang",  # a tokenizer; a file of torch.save
)  # fmt: skip
MOST_MODULES, MOST_LINES = 16, 400


def module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module(file): file for package in ("workbench", "analyses", "pages") for file in (ROOT / package).rglob("*.py")
}


def imports(name: str, *, at_import: bool = False) -> Iterator[str]:
    """Full names of the modules that a module imports; with `at_import` only when it is imported itself."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    later = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)] if at_import else []
    left_out = {id(inner) for outer in (*for_types, *later) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, (package if node.level else "", node.module or "")))
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base


def tops(name: str) -> set[str]:
    return {each.partition(".")[0] for each in imports(name)}


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if any(f"{name}.".startswith(f"{room}.") for room in rooms))


def room(name: str) -> str:
    return next(room for rooms in FLOORS for room in rooms if f"{name}.".startswith(f"{room}."))


BUILT = sorted(name for name in MODULES if name not in ("workbench", "pages"))


@pytest.mark.parametrize("name", BUILT)
def test_imports_go_down(name):
    ours = {each for each in imports(name) if each in MODULES and each not in ("workbench", "pages")}
    up = [each for each in ours if room(each) != room(name) and floor(each) >= floor(name)]
    assert not up, f"{name} is below {up}"


def test_no_import_goes_in_a_circle():
    graph = {name: {each for each in imports(name) if each in MODULES and each != name} for name in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_folder_can_be_taken_in_at_a_glance():
    counts: dict[str, int] = {}
    for file in MODULES.values():
        counts[str(file.parent.relative_to(ROOT))] = counts.get(str(file.parent.relative_to(ROOT)), 0) + 1
    assert {folder: n for folder, n in counts.items() if n > MOST_MODULES} == {}


def test_a_file_can_be_read_in_one_go():
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_only_what_runs_models_imports_torch():
    users = [name for name in MODULES if tops(name) & HEAVY and not name.startswith(MAY_IMPORT_HEAVY)]
    assert users == []


def test_only_hooks_imports_nnsight():
    assert [name for name in MODULES if "nnsight" in tops(name)] == ["workbench.capture.hooks"]


def test_streamlit_is_for_the_pages():
    assert [name for name in MODULES if "streamlit" in tops(name) and not name.startswith("pages")] == []


@pytest.mark.parametrize("room", ["workbench.metrics", "workbench.statistics"])
def test_metrics_and_statistics_take_arrays_and_know_no_file_format(room):
    users = [name for name in MODULES if name.startswith(room) and tops(name) & {"pandas", "pyarrow"}]
    assert users == []


def test_analyses_run_no_model():
    forbidden = ("workbench.models.loading", "workbench.capture")
    users = [n for n in MODULES if n.startswith("analyses") and any(e.startswith(forbidden) for e in imports(n))]
    assert users == []


def test_pages_compute_nothing():
    assert [n for n in MODULES if n.startswith("pages") and tops(n) & {"numpy", "pandas", *HEAVY}] == []


LIGHT = [
    "workbench", "workbench.cli.main", "workbench.recordings.importers.build", "workbench.jobs.service",
    "workbench.jobs.worker", "workbench.models.diagram", "workbench.efficiency.costs.comparison",
    "workbench.efficiency.measurements.measurement",
    *(name for name in MODULES if name.startswith("analyses")),
]  # fmt: skip


def test_reading_and_analysing_import_no_torch():
    """In one process, which names the first that brought it in."""
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        f"    if found := {HEAVY!r} & sys.modules.keys():\n"
        "        sys.exit(f'{name} imports {found}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(LIGHT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_names_this_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [ROOT / name for name in tracked if name.endswith((".py", ".md", ".toml", ".txt", "Makefile", "run"))]
    assert len(texts) > 20
    home = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/")
    found = [str(file) for file in texts if any(path in file.read_text(encoding="utf-8") for path in home)]
    assert found == []
