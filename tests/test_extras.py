"""What is said where a package of an extra is missing, and that every import is of a package that is declared."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import analyses
import workbench
from workbench import extras, version
from workbench.cli import ending
from workbench.errors import MissingExtra, WorkbenchError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"workbench", "analyses", "components", "server"}


def declared(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name).replace("-", "_") for line in lines}


def imported() -> dict[str, set[str]]:
    """The packages that are imported anywhere, with the files."""
    found: dict[str, set[str]] = {}
    for folder in ("workbench", "analyses", "pages"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                for name in names:
                    found.setdefault(name.partition(".")[0], set()).add(str(file.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in OURS | set(sys.stdlib_module_names)}


def test_every_import_is_of_the_core_or_of_an_extra_that_is_named():
    core = declared(PROJECT["dependencies"])
    for name, files in imported().items():
        assert name in core or name in extras.EXTRA_OF, f"{name} is imported by {sorted(files)} and declared nowhere"


@pytest.mark.parametrize("package", extras.EXTRA_OF)
def test_an_extra_brings_what_it_is_named_for(package):
    brings = declared(PROJECT["optional-dependencies"][extras.EXTRA_OF[package]])
    by_another = {"tokenizers": "transformers", "authlib": "streamlit"}
    assert by_another.get(package, package) in brings and package not in declared(PROJECT["dependencies"])


def test_all_brings_every_extra_but_the_developers():
    named = re.search(r"\[(.*)\]", PROJECT["optional-dependencies"]["all"][0])
    assert named and set(named[1].split(",")) == set(PROJECT["optional-dependencies"]) - {"all", "dev"}


@pytest.mark.parametrize("name", ["load", "record", "check_capture"])
def test_a_public_name_says_what_is_missing(monkeypatch, name):
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(workbench, "import_module", missing)
    with pytest.raises(MissingExtra, match=rf"^workbench.{name} needs torch, which is not installed: pip install "):
        getattr(workbench, name)
    with pytest.raises(ImportError, match=r"'moe-workbench\[models\]'\.$"):
        getattr(workbench, name)


def test_a_module_missing_inside_a_package_is_another_fault():
    assert extras.missing(ModuleNotFoundError("No module named 'torch.x'", name="torch.x")) is None
    assert extras.missing(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None
    with pytest.raises(ModuleNotFoundError, match=r"^mine$"), extras.extra_named("this"):
        raise ModuleNotFoundError("mine", name="mine")


def test_what_is_not_installed_is_refused_before_work(monkeypatch):
    monkeypatch.setitem(extras.EXTRA_OF, "no_such_package", "app")
    with pytest.raises(WorkbenchError, match=r"^the app needs no_such_package, .* 'moe-workbench\[app\]'\.$"):
        extras.require("no_such_package", needed_for="the app")
    extras.require("numpy", needed_for="all")


def test_the_command_line_ends_with_the_sentence():
    said: list[str] = []

    def command() -> None:
        raise ModuleNotFoundError("No module named 'nnsight'", name="nnsight")

    with pytest.raises(SystemExit) as ended:
        ending.run(command, say=said.append)
    assert ended.value.code == 1
    assert said == ["this command needs nnsight, which is not installed: pip install 'moe-workbench[models]'."]


def test_the_version_is_the_checkouts_or_the_installed(monkeypatch, tmp_path):
    assert workbench.__version__ == PROJECT["version"] and "__version__" in dir(workbench)
    version.workbench_version.cache_clear()
    monkeypatch.setattr(version, "PROJECT", tmp_path / "none")
    monkeypatch.setattr(version, "version", lambda name: f"of {name}")
    assert version.workbench_version() == "of moe-workbench"
    version.workbench_version.cache_clear()


def test_an_analysis_is_found_by_its_name_alone():
    from analyses import load_balance

    assert load_balance.__name__ == "analyses.routing.load_balance"
    for name in ("nothing", "chunks", "_map", "*"):
        with pytest.raises(AttributeError, match="module 'analyses' has no attribute"):
            getattr(analyses, name)
