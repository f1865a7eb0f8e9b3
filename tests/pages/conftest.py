"""A browser and a running app for the tests of the pages; the browser may be missing on a developer's machine only."""

import os
import shutil

import pytest

from tests.pages import browser as b


@pytest.fixture(scope="session")
def chrome():
    """A running chromium."""
    if b.chromium() is None:
        missing = "there is no chromium (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(f"{missing}, and CI is set: the browser tests must not be left out")
        pytest.skip(missing)
    with b.browsing() as browser:
        yield browser


@pytest.fixture(scope="session")
def app(recording, tmp_path_factory):
    """The app over a data folder that holds the tests' recording, as `shared`."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(recording.path, data / "recordings" / "shared")
    with b.serving(data) as running:
        yield running


@pytest.fixture
def visitor(chrome, app):
    """Somebody who looks at the app; that nothing went wrong is checked when they leave."""
    visitor = b.Visitor(chrome, app)
    yield visitor
    visitor.close()
    assert visitor.troubles == []
