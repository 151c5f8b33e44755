"""What the flat configurations are made of: fields with a help text, and checks of their values. No torch."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from densepath.errors import ConfigError

REWARDS = ("baseline_relative", "logprob", "inverse_bellman")
"""The readings of a pair of models, as `densepath.rewards.dense.RewardKind` names them."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with a help text; mutable defaults are copied."""
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among the allowed ones, with a `ConfigError`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} does not exist; choose one of: {', '.join(allowed)}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a number below the least, with a `ConfigError`."""
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
