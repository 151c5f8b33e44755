"""The recipe of an experiment: settings, methods and seeds, with the keys of `densepath run` for all or some."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from densepath.config.coerce import coerce
from densepath.config.experiment import ExperimentArguments, MethodArguments
from densepath.config.recipe_yaml import settled
from densepath.errors import ConfigError

PREFIXES = ("sft_", "dpr_")
"""Keys that go to TRL's configs."""

KINDS: Mapping[str, tuple[str, bool]] = {
    "sft": ("SFT", True),
    "continued_sft": ("continued SFT", True),
    "dft": ("DFT", True),
    "spin": ("SPIN", True),
    "gsil": ("GSIL", True),
    "extrapolation": ("weight extrapolation", True),
    "contrastive": ("contrastive decoding", True),
    "dpr": ("DPR", False),
}
"""What a method can be -> label, and whether it is a control: something that DPR must beat."""


@dataclass(frozen=True)
class Variant:
    """One set of a method's keys.

    Attributes:
        name: of its folder: the method's, and the tuned values if there are several.
        arguments: of `densepath run` and the method, seed and output_dir still the recipe's.
        others: `sft_*` and `dpr_*` keys.
    """

    name: str
    arguments: MethodArguments
    others: dict[str, Any]


@dataclass(frozen=True)
class MethodPlan:
    """One method of one setting.

    Attributes:
        name: its key in the recipe.
        kind: a key of `KINDS`.
        label: what tables call it.
        control: whether it is something that DPR must beat.
        variants: one, or those that validation chooses among.
    """

    name: str
    kind: str
    label: str
    control: bool
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Setting:
    """One data set and model with all methods on it.

    Attributes:
        name: its key in the recipe.
        arguments: what its SFT run is made with.
        others: `sft_*` and `dpr_*` keys.
        methods: name -> plan.
    """

    name: str
    arguments: MethodArguments
    others: dict[str, Any]
    methods: dict[str, MethodPlan] = field(default_factory=dict)


def read_recipe(arguments: ExperimentArguments, others: Mapping[str, Any]) -> list[Setting]:
    """Every setting with its methods, checked.

    Args:
        arguments: of the command; what it says holds for all cells unless a setting or a method says otherwise.
        others: its `sft_*` and `dpr_*` keys.

    Raises:
        ConfigError: an unknown key or method, a value that does not fit, or no method `sft` to compare with.
    """
    own = {f.name for f in dataclasses.fields(ExperimentArguments)} - set(_FIELDS) | {"output_dir"}
    shared = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in own}
    found = []
    for name, given in arguments.settings.items():
        _check_name("settings", name)
        keys = {**shared, **others, **_mapping(f"settings.{name}", given)}
        values, passed = _parse(f"settings.{name}", keys)
        setting = Setting(str(name), MethodArguments(**values), passed)
        for method, entry in arguments.methods.items():
            _check_name("methods", method)
            plan, where = _method(str(method), _mapping(f"methods.{method}", entry), keys, arguments.settings)
            if name in where:
                setting.methods[str(method)] = plan
        if "sft" not in setting.methods or setting.methods["sft"].kind != "sft":
            raise ConfigError("methods: add `sft: {}`, which every other method is compared with")
        for plan in setting.methods.values():
            _check_budget(plan, setting)
        found.append(setting)
    return found


_FIELDS = {f.name: f for f in dataclasses.fields(MethodArguments)}
_ENTRY_KEYS = ("method", "label", "control", "tune", "settings")


def _method(
    name: str, entry: Mapping[str, Any], keys: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[MethodPlan, list[str]]:
    """A method with the keys of one setting, and the names of the settings that it belongs to."""
    place = f"methods.{name}"
    where = entry.get("settings", list(settings))
    if not isinstance(where, list) or not set(where) <= set(settings):
        raise ConfigError(f"{place}.settings={where!r} must be a list of names among {', '.join(map(str, settings))}")
    kind = str(entry.get("method", name))
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{place}: no method {kind!r}{hint} (set method to one of {', '.join(KINDS)})")
    label, control = KINDS[kind]
    if name != kind:
        label = name.replace("_", " ")
    tune = _mapping(f"{place}.tune", entry.get("tune") or {})
    own = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    variants = []
    choices = [value if isinstance(value, list) else [value] for value in tune.values()]
    for chosen in itertools.product(*choices):
        tuned = dict(zip(tune, chosen, strict=True))
        suffix = "".join(f",{key}={_short(value)}" for key, value in tuned.items())
        values, passed = _parse(place, {**keys, **own, **tuned})
        try:
            variants.append(Variant(name + suffix, MethodArguments(**values), passed))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    text = str(entry.get("label", label))
    control = coerce(entry.get("control", control), bool, f"{place}.control")
    return MethodPlan(name, kind, text, control, tuple(variants)), where


def _parse(place: str, keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of the dataclass, coerced, and those for TRL's configs."""
    hints = typing.get_type_hints(MethodArguments)
    values: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    for key, value in keys.items():
        if key in _FIELDS:
            values[key] = coerce(value, hints[key], f"{place}: {key}")
        elif any(key.startswith(prefix) and key != prefix for prefix in PREFIXES):
            passed[key] = settled(value)
        else:
            near = difflib.get_close_matches(key, [*_FIELDS, *_ENTRY_KEYS], n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see densepath experiment --help"
            raise ConfigError(f"{place}: unknown key {key!r}{hint}")
    return values, passed


def _check_budget(plan: MethodPlan, setting: Setting) -> None:
    """Who is to be matched must be there, and must not wait for its own shadow."""
    for variant in plan.variants:
        if plan.kind != "continued_sft" or variant.arguments.budget == "samples":
            continue
        other = setting.methods.get(variant.arguments.budget_of)
        if other is None or other.kind in ("sft", "contrastive", "extrapolation", "continued_sft"):
            raise ConfigError(
                f"methods.{plan.name}: budget_of={variant.arguments.budget_of} must name a trained method of the "
                "recipe other than continued_sft"
            )


def _mapping(place: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected `key: value` lines, got {value!r}")
    return {str(key): item for key, item in value.items()}


def _check_name(place: str, name: Any) -> None:
    text = str(name)
    if not text or text.startswith(".") or any(letter in text for letter in "/\\, ="):
        raise ConfigError(f"{place}: the name {text!r} becomes a folder; use letters, digits, - and _")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_").replace(" ", "")
