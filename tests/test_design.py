"""The rules of the tree: which package may import which, and what stays importable without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT_TORCH = ("workbench/models/", "workbench/capture/", "workbench/efficiency/", "workbench/importers/")
TORCH_FREE_IN_THEM = (
    "workbench/models/bundled.py",
    "workbench/models/picture.py",
    "workbench/models/topology.py",
    "workbench/models/families.py",
    "workbench/models/parts.py",
    "workbench/efficiency/costs.py",
    "workbench/efficiency/devices.py",
    "workbench/efficiency/roofline.py",
    "workbench/efficiency/claims.py",
    "workbench/efficiency/subject.py",
    "workbench/capture/plan.py",
    "workbench/efficiency/energy.py",
    "workbench/efficiency/profile_command.py",
    "workbench/efficiency/serve_command.py",
    "workbench/efficiency/endpoints.py",
    "workbench/efficiency/latency.py",
    "workbench/efficiency/servers.py",
    "workbench/efficiency/load.py",
    "workbench/efficiency/utilization.py",
    "workbench/efficiency/work.py",
)
HEAVY = {"torch", "transformers", "nnsight"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path, *, at_import: bool = False) -> Iterator[str]:
    """Full names of what a file imports; with `at_import` only what runs when it is imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if at_import and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def tops(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file)}


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", sources("workbench"), ids=relative)
def test_the_engine_knows_no_analysis_page_or_browser(file):
    assert not tops(file) & {"analyses", "pages", "streamlit"}


@pytest.mark.parametrize("file", sources("workbench"), ids=relative)
def test_only_the_named_packages_import_torch(file):
    allowed = relative(file).startswith(MAY_IMPORT_TORCH) and relative(file) not in TORCH_FREE_IN_THEM
    if not allowed:
        assert not tops(file) & HEAVY


@pytest.mark.parametrize("file", sources("workbench"), ids=relative)
def test_only_hooks_imports_nnsight(file):
    assert ("nnsight" in tops(file)) == (relative(file) == "workbench/capture/hooks.py")


@pytest.mark.parametrize("file", sources("workbench/metrics"), ids=relative)
def test_metrics_take_arrays_and_know_no_file_format(file):
    assert not tops(file) & {"pandas", "pyarrow", *HEAVY}
    assert not any(name.startswith("workbench.recording") for name in imported(file))


@pytest.mark.parametrize("file", sources("analyses"), ids=relative)
def test_analyses_load_no_model(file):
    assert not tops(file) & {"pages", "streamlit", *HEAVY}
    if file.name != "_commands.py":  # the demo's command records before it analyses, inside its function
        assert not any(name.startswith(("workbench.models.loading", "workbench.capture")) for name in imported(file))


def test_pages_compute_nothing():
    assert all(not tops(file) & {"numpy", "pandas", *HEAVY} for file in sources("pages"))


ENGINE = ["cli", "corpus", "export", "figures.screen", "host", "importers.build", "measurement", "models.bundled"]
ENGINE += ["recording", *(f"efficiency.{name}" for name in ("claims", "counterparts", "roofline", "subject"))]
LIGHT = [
    "workbench",
    *(f"workbench.{name}" for name in ENGINE),
    *(f"analyses.{file.stem}" for file in sources("analyses")),
]


@pytest.mark.parametrize("module", [name for name in LIGHT if not name.endswith("__init__")])
def test_importing_it_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in {sorted(HEAVY)}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_names_this_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [ROOT / name for name in tracked if name.endswith((".py", ".md", ".toml", ".txt", "Makefile", "run"))]
    assert len(texts) > 20
    home = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/")
    found = [relative(file) for file in texts if any(path in file.read_text(encoding="utf-8") for path in home)]
    assert found == []
