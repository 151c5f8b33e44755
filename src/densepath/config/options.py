"""What the commands' arguments are made of: fields with a help text and the limits of their values. No torch."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from densepath.errors import ConfigError, NoEffectError


def option(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    required: bool = False,
    needs: str | None = None,
) -> Any:
    """A dataclass field with a help text; mutable defaults are copied.

    Args:
        default: its value when the command says nothing.
        text: its help.
        least: the lowest number that `Arguments` takes; None for any.
        most: the highest, where more would never end; None for any.
        choices: the words that `Arguments` takes; empty for any.
        required: a command without it does not begin; nor does one with an empty value.
        needs: the argument without which it has no effect, and is refused by `Arguments.check_effect`.
    """
    limits = {"least": least, "most": most, "choices": tuple(choices)}
    metadata = {"help": text, **limits, "required": required, "needs": needs}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Arguments:
    """Arguments whose values lie within the limits of their fields."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least, most = getattr(self, f.name), f.metadata["least"], f.metadata["most"]
            if f.metadata["choices"]:
                check_choice(f.name, value, f.metadata["choices"])
            if least is not None and value is not None:
                check_at_least(f.name, value, least)
            if most is not None and value is not None and value > most:
                raise ConfigError(f"{f.name}={value} must be at most {most}")
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, float):
                    check_finite(f.name, each)
                if isinstance(each, int) and abs(each) > sys.maxsize:
                    raise ConfigError(f"{f.name}={each} must be at most {sys.maxsize}")
                if isinstance(each, str):
                    check_characters(f.name, each)
            if f.name.endswith(("_file", "_dir")) and isinstance(value, str):
                check_place(f.name, value, is_file=f.name.endswith("_file"))

    def check_effect(self) -> None:
        """Refuse what was given and cannot take effect beside the others, with a `ConfigError`."""
        for f in fields(self):
            if f.metadata["needs"] and not getattr(self, f.metadata["needs"]):
                check_no_effect(self, [f.name], f"without {f.metadata['needs']}")

    def check_others_effect(self, others: Mapping[str, Any]) -> None:
        """Refuse keys for TRL's configs that cannot take effect beside these arguments, with a `ConfigError`.

        Args:
            others: name -> value.
        """


def check_no_effect(arguments: Any, names: Collection[str], where: str) -> None:
    """Refuse arguments that were given and cannot take effect, with a `NoEffectError` that names them.

    Args:
        arguments: a dataclass of options.
        names: of its arguments that have no effect.
        where: why, such as "without judge".
    """
    if given := given_among(arguments, names):
        raise NoEffectError(given, where)


def given_among(arguments: Any, names: Collection[str]) -> dict[str, Any]:
    """Those of some arguments that were given, by name: whose value is not the default.

    Args:
        arguments: a dataclass of options.
        names: of the arguments that are looked at.
    """
    values = {f.name: getattr(arguments, f.name) for f in fields(arguments) if f.name in names}
    return {name: value for name, value in values.items() if value != _default(arguments, name)}


def _default(arguments: Any, name: str) -> Any:
    (f,) = (f for f in fields(arguments) if f.name == name)
    return f.default if f.default_factory is MISSING else f.default_factory()


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among the allowed ones, with a `ConfigError`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} does not exist; choose one of: {', '.join(allowed)}")


def check_place(name: str, value: str, *, is_file: bool) -> None:
    """Refuse what cannot be the name of a file (or folder) before there is anything to write, with a `ConfigError`."""
    if is_file and Path(value).name in ("", ".."):
        raise ConfigError(f"{name}={value!r} is no name of a {'file' if is_file else 'folder'}: give one")


def check_characters(name: str, value: str) -> None:
    """Refuse what neither the name of a file nor a text can hold, with a `ConfigError`.

    Bytes of a file's name that are no UTF-8 come as halves of surrogate pairs which the system takes back.
    """
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ConfigError(
            f"{name}={value!r} holds half of a surrogate pair: no file's name and no text does"
        ) from None
    if "\0" in value:
        raise ConfigError(f"{name}={value!r} holds a null character: no file's name and no text does")


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below the least, with a `ConfigError`."""
    if not value >= least:  # NaN too
        raise ConfigError(f"{name}={value} must be at least {least}")


def check_finite(name: str, value: float) -> None:
    """Refuse NaN and infinity, with a `ConfigError`."""
    if not math.isfinite(value):
        raise ConfigError(f"{name}={value} must be a number")


def check_temperature(place: str, value: float) -> None:
    """Refuse a temperature below 0 or not finite, with a `ConfigError` that begins with the place."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{place}{value} must be at least 0; 0 is greedy")


def check_required(kind: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse a command without one of its required arguments, with a `ConfigError` that says what is missing.

    Args:
        kind: dataclass of the command's arguments.
        given: name -> value.
    """
    for f in fields(kind):
        if f.metadata["required"] and not given.get(f.name):
            raise ConfigError(f"{f.name} is missing: {f.metadata['help']}")


def check_html_name(name: str | None, twin: str) -> None:
    """Refuse a page's name that its JSON twin would take, with a `ConfigError`."""
    if name is not None and not name.endswith((".html", ".htm")):
        raise ConfigError(f"html_file={name} must end in .html; {twin}")


def check_reference(dense_reward: str, reference: object) -> None:
    """Refuse a reading of two models where but one is given, and of one where a reference is, with a `ConfigError`.

    Args:
        dense_reward: the reading.
        reference: what `ref_model_name_or_path` names; None or empty for none.
    """
    if dense_reward == "baseline_relative" and not reference:
        raise ConfigError(
            "dense_reward=baseline_relative needs ref_model_name_or_path: an earlier checkpoint of the SFT run, "
            "or the model before SFT; with one model alone choose dense_reward=logprob"
        )
    if dense_reward != "baseline_relative" and reference:
        raise ConfigError(
            f"dense_reward={dense_reward} reads the SFT model alone, and ref_model_name_or_path would have no effect: "
            "leave one of them out"
        )
