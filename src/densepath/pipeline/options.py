"""What the flat configurations are made of: fields with a help text, and checks of their values. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from densepath.errors import ConfigError

REWARDS = ("baseline_relative", "logprob", "inverse_bellman")
"""The readings of a pair of models, as `densepath.rewards.dense.RewardKind` names them."""


TEMPLATE_SETTINGS = ("eos_token", "chat_template_path", "chat_template_kwargs")
"""What decides how text becomes ids, beside the tokenizer: one setting for every stage and command."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with a help text; mutable defaults are copied."""
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TokenizerArguments:
    """How text becomes ids. A model that densepath trains keeps these settings in its tokenizer."""

    trust_remote_code: bool = option(False, "Run code that comes with the model.")
    eos_token: str | None = option(
        None, "Token that ends a turn, where the chat template uses another than the tokenizer says (<end_of_turn>)."
    )
    chat_template_path: str | None = option(
        None, "Chat template to use: a Jinja file, or the folder or hub id of a tokenizer that has it."
    )
    chat_template_kwargs: dict[str, Any] | None = option(
        None, "Arguments of the chat template, as in '{\"enable_thinking\": false}'; those of a row go before them."
    )

    def tokenizer_options(self) -> dict[str, Any]:
        """These arguments as `load_tokenizer` takes them."""
        return {"trust_remote_code": self.trust_remote_code, **{n: getattr(self, n) for n in TEMPLATE_SETTINGS}}


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among the allowed ones, with a `ConfigError`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} does not exist; choose one of: {', '.join(allowed)}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a number below the least, with a `ConfigError`."""
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
