"""Ways to improve an SFT model, one file each: `train(stage) -> Outcome`, a decoder, or both.

A module of this package whose name has no underscore before it *is* a method: its `METHOD` says what tables call it,
whether it is a control, what it does, and which keys it takes beyond those of `densepath run`. Its docstring gives the
equation, the source and the cost. To add a method is to add a file.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from densepath.config.run import RunArguments
from densepath.data.rows import Row
from densepath.errors import ConfigError
from densepath.methods._stage import Policy, SFTRun, Stage, trained
from densepath.records.outcome import Outcome

__all__ = ["Method", "Outcome", "Policy", "SFTRun", "Stage", "get_method", "method_names"]


@dataclass(frozen=True)
class Method:
    """What a method is.

    Attributes:
        label: what tables call it.
        control: whether it is something that a method under test has to beat.
        train: trains from the SFT model of a stage and leaves `model` in its folder; None where nothing is trained.
        policy: what is sampled from afterwards; the trained model by default.
        arguments: keys that it takes.
        needs_reference: whether it reads `reference`, which may be left to validation; where none helps there, the
            SFT model stands for it.
        matches: whether its compute is that of another method, which then has to be trained before it.
        check_rows: refuses training rows that it could not use, before anything is trained; None where it takes all.
        sees_validation: whether it is trained on the validation prompts, where its figures then say nothing.
        stage: of the memory plan, in which its training is counted: "SFT", "DPR" or "self-play"; None where no step is
            trained.
        decoders: models that its answers are decoded with, each with a cache of its own.
    """

    label: str
    control: bool
    train: Callable[[Stage], Outcome] | None = None
    policy: Callable[[Stage], Policy] = trained
    arguments: type[RunArguments] = RunArguments
    needs_reference: bool = False
    matches: bool = False
    check_rows: Callable[[RunArguments, Sequence[Row]], None] | None = None
    sees_validation: bool = False
    stage: str | None = None
    decoders: int = 1


@functools.cache
def method_names() -> tuple[str, ...]:
    """Every method there is, by the alphabet."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the message names the nearest one.
    """
    if name not in method_names():
        near = difflib.get_close_matches(name, method_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no method {name!r}{hint} (one of {', '.join(method_names())})")
    method: Method = importlib.import_module(f"{__name__}.{name}").METHOD
    return method
