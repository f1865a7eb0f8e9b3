"""A checkpoint in a folder, which several tests of loading read or spoil."""

import shutil

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "moe"
    tiny.moe().module.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "moe")
