"""The tiny model and the server that forks `densepath` processes, as the tests of runs have them."""

from __future__ import annotations

from tests.pipeline.conftest import forks, tiny_model

__all__ = ["forks", "tiny_model"]
