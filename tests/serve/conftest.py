"""A tiny reward, served on loopback in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import httpx2
import pytest
import torch
from fastapi import FastAPI
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.rewards.dense import DenseReward
from densepath.serve.app import create_app
from densepath.serve.server import bind, make_server, url_of
from densepath.serve.settings import Access, Limits

KEY = "a-key-of-sixteen-characters"


def tiny_reward(dtype: torch.dtype = torch.float64, **settings) -> DenseReward:
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(len(tokenizer), seed=seed, dtype=dtype) for seed in (0, 1)]
    return DenseReward(*models, tokenizer=tokenizer, **settings)


@pytest.fixture(scope="session")
def reward() -> DenseReward:
    return tiny_reward()


@contextlib.contextmanager
def serving(app: FastAPI, limits: Limits) -> Iterator[str]:
    """The address of a server that runs during the block, and has stopped after it."""
    ready = threading.Event()
    bound = bind("127.0.0.1", 0)
    server = make_server(app, limits=limits, on_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    url = url_of(bound)
    thread.start()
    try:
        assert ready.wait(30)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def served(reward: DenseReward, limits: Limits | None = None, access: Access | None = None) -> Iterator[str]:
    """The address of a server of this reward."""
    limits = limits or Limits()
    with serving(create_app(reward, limits=limits, access=access), limits) as url:
        yield url


@pytest.fixture(scope="session")
def url(reward) -> Iterator[str]:
    with served(reward) as address:
        yield address


@pytest.fixture(scope="session")
def client(url) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=30) as found:
        yield found
