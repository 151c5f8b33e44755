"""Flat arguments from a YAML file and `--key value` overrides, in the manner of TRL's parser, without torch."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from densepath.config.coerce import coerce, expanded
from densepath.config.listed import Listed
from densepath.config.options import Arguments, check_required
from densepath.config.recipe_yaml import load_mapping, read_yaml, settled, underscored
from densepath.errors import ConfigError, NoEffectError, UsageError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are a `UsageError`, hence one line like every other."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise instead of leaving the process."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def user_path(text: str) -> Path:
    """A path of the command line; `~` is the home folder."""
    return Path(text).expanduser()


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    passthrough: Mapping[str, str] | None = None,
    listed: Listed | None = None,
) -> tuple[T, dict[str, Any]]:
    """Arguments of a command: defaults, then `--config` YAML, then `--key value`.

    Args:
        kind: dataclass of the command's own arguments.
        argv: words after the command.
        prog: what `--help` calls the command.
        description: its first paragraph.
        passthrough: prefix -> name of the TRL config that takes keys with this prefix; "" takes any key.
        listed: what `--help` lists, where that is not all.

    Returns:
        The dataclass, and the keys left to TRL's configs (values as YAML reads them).

    Raises:
        UsageError: an unknown key (with the nearest known one).
        ConfigError: a value that does not fit, or has no effect (see `_effective`); or a required argument that is not
            there.
    """
    passthrough, listed = passthrough or {}, listed or Listed()
    hints = typing.get_type_hints(kind)
    parser = _parser(kind, prog, description, passthrough, listed)
    if "--help_all" in argv:
        _list_all(parser, listed)
    known, rest = parser.parse_known_args(list(argv))
    given = vars(known)
    config_path = given.pop("config")
    given.pop("debug")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if config_path is not None:
        recipe = load_mapping(config_path, f"--config {config_path}")
        for key, value in underscored(recipe, config_path).items():
            values[key], sources[key] = value, config_path
    for key, value in [*given.items(), *_pairs(rest, prog).items()]:
        values[key], sources[key] = value, "the command line"
    own: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, value in values.items():
        if key in hints:
            own[key] = coerce(value, hints[key], key)
        elif any(key.startswith(prefix) and key != prefix for prefix in passthrough):
            typed = settled(value if sources[key] == config_path else _value_of(value, key))
            others[key] = expanded(typed, key)
        else:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; see {prog} --help_all"
            raise ConfigError(f"{sources[key]}: unknown key {key!r}{hint}")
    if own.get("sft_from"):
        from densepath.models.kept import with_model_before  # imports torch

        own = with_model_before(own)
    check_required(kind, own)
    return _effective(kind, own, others, {key for key, source in sources.items() if source == config_path})


def _effective(
    kind: type[T], own: Mapping[str, Any], others: Mapping[str, Any], of_recipe: Collection[str]
) -> tuple[T, dict[str, Any]]:
    """The arguments of a command, and the keys for TRL's configs, all of which take effect.

    What a recipe gives may lose its effect where the command line asks for less (fewer arms, no judge): it is left
    out, and that is said. What else has none is a mistake.

    Raises:
        NoEffectError: arguments of the command line, or of a recipe that have no effect in it by itself.
    """
    left = own.keys() | others.keys()
    for lost in _losses(kind, own, others):
        of_itself = _lost_by_itself(kind, _among(own, of_recipe), _among(others, of_recipe))
        mistaken = {name: value for name, value in lost.given.items() if name not in of_recipe or name in of_itself}
        if mistaken:
            raise NoEffectError(mistaken, lost.where)
        warnings.warn(f"{lost.fact} as the command line has it: left out", stacklevel=2)
        left -= lost.given.keys()
    return kind(**_among(own, left)), _among(others, left)


def _losses(kind: type[Any], own: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[NoEffectError]:
    """What says that some arguments, or keys for TRL's configs, have no effect; then the same without these."""
    while True:
        found = kind(**own)
        try:
            if isinstance(found, Arguments):
                found.check_effect()
                found.check_others_effect(others)
            return
        except NoEffectError as error:
            yield error
            own, others = (_among(values, values.keys() - error.given.keys()) for values in (own, others))


def _lost_by_itself(kind: type[Any], own: Mapping[str, Any], others: Mapping[str, Any]) -> set[str]:
    """Names of a recipe that have no effect whatever the command line adds; none where it is no recipe by itself."""
    try:
        return {name for lost in _losses(kind, own, others) for name in lost.given}
    except UsageError:
        return set()


def _among(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of the values whose names are among some."""
    return {name: value for name, value in values.items() if name in names}


def _parser(kind: type[Any], prog: str, description: str, passthrough: Mapping[str, str], listed: Listed) -> Parser:
    """The parser of a command, whose help lists what is `listed`."""
    more = [f"{prog} --help_all lists every argument"] if listed.own or listed.configs else []
    more += [
        f"any {prefix + '*' if prefix else 'other'} key goes to {target}" for prefix, target in passthrough.items()
    ]
    usage, epilog = f"{prog} [--config YAML] [--key value ...]", "; ".join(more) or None
    parser = Parser(prog=prog, usage=usage, description=description, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="Recipe: flat `key: value` lines with the names below.")
    parser.add_argument("--debug", action="store_true", help="Show tracebacks.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in dict.fromkeys((*listed.own, *fields)):
        f = fields[name]
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        shown = (" ".join(map(str, default)) or "none") if isinstance(default, list) else default
        told = "required" if f.metadata["required"] else f"default: {shown}"
        nargs: str | None = "*" if isinstance(default, list) else "?" if isinstance(default, bool) else None
        extra: dict[str, Any] = {"const": "true"} if isinstance(default, bool) else {}
        text = f"{_help(f.metadata.get('help', ''), f.metadata.get('choices', ()))} ({told})"
        _add(parser, name, text, hidden=bool(listed.own) and name not in listed.own, nargs=nargs, **extra)
    for name, argument in listed.trainer.items():
        _add(parser, name, f"{_help(argument.text, argument.choices)} (default: {argument.default})")
    return parser


def _add(parser: Parser, name: str, text: str, *, hidden: bool = False, **extra: Any) -> None:
    """An argument that is not in what was parsed where it was not given."""
    metavar = name.upper()
    shown = argparse.SUPPRESS if hidden else text.replace("%", "%%")
    added = parser.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=metavar, help=shown, **extra)
    added.full = text.replace("%", "%%")  # type: ignore[attr-defined]  # what --help_all shows of a hidden one


def _list_all(parser: Parser, listed: Listed) -> typing.NoReturn:
    """Print every argument of a command, then those of the configs that take its other keys, and leave."""
    for action in parser._actions:
        action.help = getattr(action, "full", action.help)
    for prefix, place in listed.configs.items():
        module, _, name = place.partition(":")
        group = parser.add_argument_group(f"{name}, as {prefix or '--'}*" if prefix else name)
        for f in dataclasses.fields(getattr(import_module(module), name)):
            if f.init and f"--{prefix}{f.name}" not in parser._option_string_actions:
                default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
                text = " ".join(str(f.metadata.get("help") or "").split()).replace("%", "%%")
                group.add_argument(f"--{prefix}{f.name}", metavar="VALUE", help=f"{text} (default: {default})")
    parser.print_help()
    parser.exit()


def _help(text: str, choices: Sequence[str]) -> str:
    """An argument's help with the words that it takes, unless it names them all."""
    named = all(choice in text for choice in choices)
    return text if named else f"{text} One of: {', '.join(choices)}."


def _value_of(word: str, key: str) -> Any:
    """A word of the command line as YAML reads it; text where it is none, such as `a: b: c`."""
    try:
        return read_yaml(word, f"--{key}")
    except ConfigError:
        if word.startswith(("{", "[")):  # meant to be a mapping or a list
            raise
        return word


def _pairs(words: list[str], prog: str) -> dict[str, str]:
    """`--key value` and `--key=value` words that the parser did not know."""
    pairs: dict[str, str] = {}
    index = 0
    while index < len(words):
        word = words[index]
        if not word.startswith("--"):
            raise UsageError(f"unexpected word {word!r} (see {prog} --help)")
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = words[index + 1] if index + 1 < len(words) else "--"
            if following.startswith("--"):
                value = "true"
            else:
                value, index = following, index + 1
        pairs[key] = value
        index += 1
    return pairs
