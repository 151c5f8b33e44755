"""What holds for all tests."""

from __future__ import annotations

import functools
import gc
import importlib.metadata

importlib.metadata.version = functools.cache(importlib.metadata.version)
"""Every model card asks for six versions, and each is read off a file: a tenth of what a training in a test takes."""


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: stages collect before each model that they load."""
    gc.collect()
    gc.freeze()
