from __future__ import annotations

import pytest
from tests.browser.driver import MISSING, chromium


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """One browser for all tests."""
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)} on the PATH; as root on Debian: make browser")
    with chromium(tmp_path_factory.mktemp("browser")) as running:
        yield running
