"""Says of each model that is not on this machine that the hub is asked for it, which may take a while."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from densepath.config.judge import parse_judge
from densepath.config.run import RunArguments
from densepath.models.locate import asks_the_hub
from densepath.terminal import Console, say

_JUDGES = ("judge", "second_judge")
_MODELS_OR_WORDS = ("models", "baseline", "reference")
"""Arguments that take a model, or a word: the name of a generator, a fraction. A word has no slash."""
_WITH_MODELS = ("local", "reward")
"""Kinds of judges that are models of the hub."""


def tell_hub(arguments: Any, console: Console) -> None:
    """Say which of the models that a command's arguments name the hub is asked for.

    Args:
        arguments: a dataclass of options.
        console: where it is said.
    """
    for argument, model in _named(arguments):
        if asks_the_hub(model):
            say(console, f"{argument}={model} is no folder here, nor in the hub's cache: asking the hub for it")


def _named(arguments: Any) -> Iterator[tuple[str, str]]:
    """(argument, model) of all that may be loaded; none where a dry run loads none."""
    if getattr(arguments, "dry_run", False) and not isinstance(arguments, RunArguments):
        return
    for f in fields(arguments):
        given = getattr(arguments, f.name)
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, str) or not value:
                continue
            if f.name.endswith("model_name_or_path") or (f.name in _MODELS_OR_WORDS and "/" in value):
                yield f.name, value
            elif f.name in _JUDGES and parse_judge(value, f.name)[0] in _WITH_MODELS:
                yield f.name, parse_judge(value, f.name)[1]
