"""Recipes as YAML 1.2 reads them, where `no` is a word and `1e-5` a number; a key given twice is an error. No torch.

By itself PyYAML reads YAML 1.1: `save_strategy: no` is false there, `1e-5` a text, `010` an eight and `12:30` 750.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from densepath.errors import ConfigError, MissingFileError


class Word(str):
    """A plain yes, no, on or off: text or a truth value, as the argument wants it."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's class attribute
    name_of_source = ""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping, whose keys are all different."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ConfigError(
                        f"{self.name_of_source}: the key {key.value!r} is given twice, in lines {seen[key.value]} and "
                        f"{line}; remove one"
                    )
                seen[key.value] = line
        return node


class RecipeDumper(yaml.SafeDumper):
    """Writes what `read_yaml` reads, words included."""


_BOOL, _INT, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_WORD = "!word"
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_WORD, r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", list("yYnNoO")),
    (_INT, r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?((\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_WORD, lambda loader, node: Word(node.value))
_Loader.add_constructor(_INT, lambda loader, node: int(node.value))
RecipeDumper.add_representer(Word, lambda dumper, word: dumper.represent_scalar(_BOOL, str(word)))


def read_yaml(text: str | bytes, source: str) -> Any:
    """The value that a YAML text says, with a `Word` for each plain yes, no, on and off.

    Args:
        text: one document; bytes are UTF-8, or UTF-16 with a byte order mark, as Windows' shells write them.
        source: what messages call it.

    Raises:
        ConfigError: it is no YAML, or has a key twice.
    """
    try:
        loader = _Loader(text)
        loader.name_of_source = source
        value = loader.get_single_data()
        _check_finite_depth(value, source, ())
        return value
    except ConfigError:
        raise
    except yaml.reader.ReaderError as error:
        reason = " ".join(str(error.reason).split())
        raise ConfigError(f"{source}: cannot be read as text ({reason}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    except (KeyError, AttributeError, TypeError) as error:  # PyYAML's constructors of `!!bool foo`, `!!timestamp foo`
        raise ConfigError(f"{source}: not valid YAML: a tag (!!) does not fit its value ({error})") from None


def _check_finite_depth(value: Any, source: str, within: tuple[int, ...]) -> None:
    """Refuse a value that an alias makes a part of itself."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if id(value) in within:
        raise ConfigError(f"{source}: not valid YAML: an alias (*) names what it is a part of")
    for part in parts:
        _check_finite_depth(part, source, (*within, id(value)))


def load_mapping(path: str, what: str) -> dict[str, Any]:
    """The `key: value` lines of a YAML file; values as `read_yaml` reads them.

    Args:
        path: the file.
        what: how messages begin where there is none, such as "--config recipe.yaml".

    Raises:
        MissingFileError: it is not there.
        ConfigError: it cannot be read, is no YAML, or no mapping.
    """
    try:
        text = Path(path).expanduser().read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise MissingFileError(f"{what}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    value = read_yaml(text, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def underscored(keys: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Keys of a recipe with underscores for hyphens, which the command line takes too.

    Args:
        keys: name -> value.
        place: what they stand in, for messages.

    Raises:
        ConfigError: one of them is given with both.
    """
    found: dict[str, Any] = {}
    for key, value in keys.items():
        name = key.replace("-", "_")
        if name in found:
            raise ConfigError(f"{place}: {name} is given twice, with - and with _; remove one")
        found[name] = value
    return found


def settled(value: Any) -> Any:
    """An argument's value without `Word`: text as the value itself or in a list, a truth value in a mapping."""
    if isinstance(value, dict):
        return {str(key): _in_mapping(item) for key, item in value.items()}
    if isinstance(value, list):
        return [settled(item) for item in value]
    return str(value) if isinstance(value, Word) else value


def _in_mapping(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _in_mapping(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_mapping(item) for item in value]
    return value.lower() in ("yes", "on") if isinstance(value, Word) else value
