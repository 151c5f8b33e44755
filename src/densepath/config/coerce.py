"""Values from YAML or the command line as the types that fields are annotated with. No torch: `--help` reads this."""

from __future__ import annotations

import math
import os
import types
import typing
from typing import Any

from densepath.config.recipe_yaml import read_yaml, settled
from densepath.errors import ConfigError


def coerce(value: Any, hint: Any, name: str) -> Any:
    """A YAML or command-line value as the type of its field: "5e-5" for a float, "a,b" for a list.

    Raises:
        ConfigError: it cannot be read as that type.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        says_none = value is None or (isinstance(value, str) and value.lower() in ("none", "null"))
        if says_none and type(None) in options:
            return None
        others = sorted((o for o in options if o is not type(None)), key=_specificity)
        if len(others) == 1:
            return coerce(value, others[0], name)
        for option in others:
            try:
                return coerce(value, option, name)
            except ConfigError:
                continue
        raise ConfigError(f"{name}={value!r} does not fit {hint}")
    if dict in (origin, hint):  # a Mapping is a recipe in the recipe, whose keys decide what a word means
        given = settled(read_yaml(value, name) if isinstance(value, str) else value)
        if not isinstance(given, dict):
            raise ConfigError(f"{name}={value!r} must be an object of names and values, as in '{{\"key\": true}}'")
        return given
    if origin is list:
        if isinstance(value, list) and options[0] is str:  # words of their own, which may be paths with spaces
            items = [part for item in value for part in (_parts(item) if isinstance(item, str) else [item])]
        else:
            given = value if isinstance(value, list) else [value]
            items = [part for item in given for part in (_words(item) if isinstance(item, str) else [item])]
        return [coerce(item, options[0], name) for item in items]
    if hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "1", "yes", "y", "t", "on"):
            return True
        if str(value).lower() in ("false", "0", "no", "n", "f", "off"):
            return False
        raise ConfigError(f"{name}={value!r} must be true or false")
    if hint in (int, float):
        if isinstance(value, bool) or value is None:
            raise ConfigError(f"{name}={value!r} must be a number")
        if hint is int and isinstance(value, int):
            return value
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{name}={value!r} must be a number") from None
        if hint is float and math.isnan(number):
            raise ConfigError(f"{name}={value!r} must be a number")
        if hint is float:
            return number
        if not math.isfinite(number) or number != int(number):
            raise ConfigError(f"{name}={value!r} must be a whole number")
        return _whole(value, number)
    if hint is str:
        if isinstance(value, (dict, list)) or value is None:
            raise ConfigError(f"{name}={value!r} must be text")
        return expanded(str(value), name)
    return value


def expanded(value: Any, name: str) -> Any:
    """A text that begins with `~/` or `~user/` with the home folder in its place; anything else as it is.

    Shells do this only to a word of its own: not in a recipe, nor behind `--key=`. Of the libraries below some do it
    and some do not, which would tear a run apart. A lone `~` is a folder only where the key says so.
    """
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    is_path = "/" in value or name.endswith(("_dir", "_path", "_file", "_folder"))
    return os.path.expanduser(value) if is_path else value


def _whole(value: Any, number: float) -> int:
    """The whole number that a value says, exactly where it is written in digits: a float holds but 53 bits of it."""
    try:
        return int(value)
    except ValueError:  # "8.0", "1e3"
        return int(number)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _specificity(hint: Any) -> int:
    """Narrow types first, so that "5" becomes a number where a number fits."""
    order = {bool: 0, int: 1, float: 2}
    return order.get(hint, 4 if hint is str else 3)
