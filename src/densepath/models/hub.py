"""Says of each model that is not on this machine that the hub is asked for it, which may take a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from densepath.config.judge import parse_judge
from densepath.config.judging import JudgeCommandArguments
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
    if isinstance(arguments, JudgeCommandArguments) and arguments.dry_run:  # which loads none
        return
    for argument, model in dict.fromkeys(_named(vars(arguments))):
        tell_model(argument, model, console)


def tell_model(argument: str, model: str, console: Console) -> None:
    """Say that the hub is asked for a model, if it is.

    Args:
        argument: that names the model.
        model: folder, catalogue name or hub id.
        console: where it is said.
    """
    if asks_the_hub(model):
        say(console, f"{argument}={model} is no folder here, nor in the hub's cache: asking the hub for it")


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(argument, model) of all that may be loaded, those of an experiment's settings and methods too."""
    for name, given in values.items():
        if isinstance(given, Mapping):
            yield from _named(given)
            continue
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, str) or not value:
                continue
            if name.endswith("model_name_or_path") or (name in _MODELS_OR_WORDS and "/" in value):
                yield name, value
            elif name in _JUDGES and parse_judge(value, name)[0] in _WITH_MODELS:
                yield name, parse_judge(value, name)[1]
