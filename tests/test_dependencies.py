"""What may be installed: no floor admits a version with a known advisory, and what is pinned is what is admitted."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# The first version after the last advisory that was known when the floor was set.
MENDED = {
    "pyarrow": "23.0.1",  # CVE-2026-25087: reading IPC files
    "starlette": "1.3.1",  # CVE-2026-54283 and others: the server behind the pages
    "python-multipart": "0.0.27",  # CVE-2026-42561: uploads
    "pillow": "12.3",  # CVE-2026-42309 and others
    "jinja2": "3.1.6",  # CVE-2025-27516
    "urllib3": "2.7",  # CVE-2026-44432
}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    return [found for found in map(Requirement, lines) if found.name != "moe-workbench"]


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([\w.\[\]-]+)==([\w.+!]+)\s*(;.*)?", line.partition("#")[0].strip()) for line in lines)
    return {canonicalize_name(each[1]): Version(each[2]) for each in found if each}


def test_what_is_pinned_is_what_is_admitted():
    versions = pinned()
    for requirement in wanted():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not admit the pinned {version}"


@pytest.mark.parametrize("name", MENDED)
def test_no_floor_admits_a_known_advisory(name):
    (requirement,) = [each for each in wanted() if canonicalize_name(each.name) == name]
    floors = [Version(each.version) for each in requirement.specifier if each.operator in (">=", "==", "~=")]
    assert floors and max(floors) >= Version(MENDED[name])
    assert pinned()[name] >= Version(MENDED[name])
