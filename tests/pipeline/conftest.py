"""A tiny model on disk, and the server that forks `densepath` processes."""

from __future__ import annotations

import pytest
from tests.pipeline.runs import ForkServer, run_argv, save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    server = ForkServer(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model, forks):
    """A run that ended by itself, and its command; tests change copies."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    argv = run_argv(tiny_model, folder)
    assert forks.run(argv) == 0, forks.stderr
    return folder, argv
