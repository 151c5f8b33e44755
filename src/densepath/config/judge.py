"""Arguments of the commands that ask a judge. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from densepath.config.options import Arguments, check_no_effect, option
from densepath.errors import ConfigError

JUDGES = {
    "openai": "a model behind any endpoint that speaks OpenAI's protocol, by its name there",
    "local": "a causal LM, by hub id or folder",
    "reward": "a sequence-classification reward model, by hub id or folder",
    "dense": "the folder of a saved DenseReward",
    "verifier": "a verifier, by name",
}
"""Kinds of judges, and what stands behind the colon."""
WHO_JUDGES = f"Who judges: {', '.join(f'{kind}:...' for kind in JUDGES)}; behind the colon a name, hub id or folder."
_ABOVE_ZERO = ("judge_timeout", "judge_calls_per_minute")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_judge(judge: str, name: str = "judge") -> tuple[str, str]:
    """The kind of a judge, and what stands behind its colon.

    Args:
        judge: such as `openai:gpt-4.1`.
        name: of the argument, for messages.

    Raises:
        ConfigError: another kind, or nothing behind the colon.

    >>> parse_judge("verifier:my.module:function")
    ('verifier', 'my.module:function')
    """
    kind, _, rest = judge.partition(":")
    if kind not in JUDGES or not rest:
        kinds = "; ".join(f"{known}: ({what})" for known, what in JUDGES.items())
        raise ConfigError(f"{name}={judge!r} is no judge; write one of {kinds}")
    return kind, rest


@dataclass
class EndpointArguments(Arguments):
    """How an endpoint is asked, and what it may cost."""

    judge_base_url: str | None = option(
        None, "Endpoint of an openai: judge, such as http://localhost:8000/v1. None: OpenAI's own."
    )
    judge_api_key_env: str | None = option(
        None, "Environment variable that holds the endpoint's key. None: OPENAI_API_KEY for OpenAI's own, else no key."
    )
    judge_parameters: dict[str, Any] = option(
        {},
        "Parameters of each call on top of the template's, as in '{\"max_tokens\": 4096}'; null takes one away.",
    )
    judge_concurrency: int = option(8, "Calls under way at once.", least=1)
    judge_timeout: float = option(120.0, "Seconds that a whole call may take.")
    judge_retries: int = option(6, "Times that a call which failed is sent again.", least=0)
    judge_calls_per_minute: float | None = option(None, "Calls sent in a minute at most; None for no limit.")
    judge_prompt_price: float | None = option(None, "Price of a million tokens that the endpoint reads.", least=0)
    judge_completion_price: float | None = option(None, "Price of a million tokens that it writes.", least=0)
    judge_cache: str | None = option(
        None, "Folder of the replies that were paid for. None: judge_cache in the output folder."
    )
    max_calls: int | None = option(
        None, "Calls at most, retries and earlier commands with this cache included.", least=0
    )
    max_cost: float | None = option(
        None, "Cost at most, in the unit of the prices, earlier commands included; stops before it.", least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _ABOVE_ZERO:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.judge_api_key_env is not None and not _VARIABLE.fullmatch(self.judge_api_key_env):
            raise ConfigError("judge_api_key_env names no environment variable: give its name, never the key itself")
        if (self.judge_prompt_price is None) != (self.judge_completion_price is None):
            raise ConfigError("one price alone was given; give judge_prompt_price and judge_completion_price")
        if self.max_cost is not None and self.judge_prompt_price is None:
            raise ConfigError("max_cost needs prices: give judge_prompt_price and judge_completion_price")


@dataclass
class JudgeArguments(EndpointArguments):
    """Who judges, by which template, and how often."""

    judge: str | None = option(None, WHO_JUDGES)
    judge_template: str | None = option(
        None, "What the judge is asked: a template's name, or a YAML file. None: the benchmark's, or ours."
    )
    judge_both_orders: bool = option(True, "Show each pair in both orders; a disagreement counts one half.")
    judge_repeats: int = option(1, "Times that each is judged; shows the judge's own noise.", least=1, most=100)
    max_invalid: float = option(0.2, "Share of judgements that may be invalid before judging stops.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None:
            parse_judge(self.judge)
        if not self.max_invalid <= 1:
            raise ConfigError(f"max_invalid={self.max_invalid} must lie in [0, 1]: it is a share")

    def check_effect(self) -> None:
        """How a judge is asked has no effect where there is none, nor what an endpoint is told without one."""
        super().check_effect()
        judges = [each for each in (self.judge, getattr(self, "second_judge", None)) if each is not None]
        if not judges:
            check_no_effect(self, [f.name for f in fields(JudgeArguments)], "without judge")
        elif not any(each.startswith("openai:") for each in judges):
            endpoint = [f.name for f in fields(EndpointArguments)]
            check_no_effect(self, endpoint, f"with judge={self.judge}, which is no endpoint")
        if judges and not any(each.startswith(("openai:", "local:")) for each in judges):
            check_no_effect(
                self, ["judge_template", "reference_answers"], f"with judge={self.judge}, which reads no question"
            )
