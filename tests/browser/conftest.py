from __future__ import annotations

import pytest
from tests.browser.driver import MISSING, chromium


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    """Where the browser keeps its profile and puts what is saved."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="session")
def driver(downloads):
    """One browser for all tests."""
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)} on the PATH; as root on Debian: make browser")
    with chromium(downloads) as running:
        yield running
