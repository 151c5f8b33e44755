"""What holds for all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: stages collect before each model that they load."""
    gc.collect()
    gc.freeze()
