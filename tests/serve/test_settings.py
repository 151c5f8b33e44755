"""Limits and access on their own."""

from __future__ import annotations

import math

import pytest

from densepath.errors import ConfigError
from densepath.serve.settings import Limits, is_loopback


@pytest.mark.parametrize("name", ["max_items", "max_length", "max_queue_size", "request_timeout", "read_timeout"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_bound_that_refuses_everything(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value} must be a number above 0"):
        Limits(**{name: value})


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost")] == [True] * 4
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1", "example.org", "")))
