"""Small settings for the two costliest statements, so that planting many faults stays cheap."""

import pytest

from densepath.theory import optimum, reward_error


@pytest.fixture
def small_settings(monkeypatch):
    """One enumerated problem, small samples, short searches: the same checks on less."""
    monkeypatch.setattr(optimum, "ENUMERATED", ((3, 3, 1, 2),))
    monkeypatch.setattr(optimum, "WHITENED_BATCHES", (2,))
    monkeypatch.setattr(optimum, "SAMPLED_BATCHES", 2000)
    monkeypatch.setattr(optimum, "ASCENT_STEPS", 150)
    monkeypatch.setattr(reward_error, "SEARCH_STEPS", 40)
