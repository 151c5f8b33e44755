"""The recipe of an experiment: settings, methods and seeds, with the keys of `densepath run` for all or some."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import typing
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from densepath.config.coerce import coerce
from densepath.config.experiment import ExperimentArguments
from densepath.config.judge import JudgeArguments
from densepath.config.mixins import TEMPLATE_SETTINGS
from densepath.config.options import check_no_effect
from densepath.config.recipe_yaml import settled, underscored
from densepath.config.run import OF_BEHAVIOURS, GivenSFTArguments, RecipeRowsArguments, RunArguments, one_template
from densepath.errors import ConfigError
from densepath.methods import get_method, method_names
from densepath.models.kept import with_model_before
from densepath.pipeline.run_folder import MACHINE_KEYS
from densepath.records.arm import Arm

PREFIXES = ("sft_", "dpr_")
"""Keys that go to TRL's configs."""


@dataclass(frozen=True)
class Variant:
    """One set of a method's keys.

    Attributes:
        name: of its folder: the method's, and the tuned values if there are several.
        arguments: of `densepath run` and the method, seed and output_dir still the recipe's.
        others: `sft_*` and `dpr_*` keys.
    """

    name: str
    arguments: RunArguments
    others: dict[str, Any]


@dataclass(frozen=True)
class MethodPlan:
    """One arm of one setting.

    Attributes:
        arm: its key in the recipe, what tables call it, and whose compute it has.
        method: what it is: a module of `densepath.methods`.
        variants: one, or those that validation chooses among.
    """

    arm: Arm
    method: str
    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        matches, sees = matched_with(self, self.variants[0]), get_method(self.method).sees_validation
        if sees and len(self.variants) > 1:
            raise ConfigError(
                f"methods.{self.name}: it is trained on the validation prompts, which cannot choose among the values "
                "of tune; give one of them"
            )
        for variant in self.variants if matches is not None else ():
            given = variant.arguments.sft_from or variant.arguments.sft_model_name_or_path
            if given is not None and variant.arguments.budget == "seconds":  # type: ignore[attr-defined]
                raise ConfigError(
                    f"{self.name}: seconds cannot be matched, since SFT was not trained here ({given} was given) and "
                    "nobody knows what a step of it takes; match flops or samples"
                )
        object.__setattr__(self, "arm", dataclasses.replace(self.arm, matches=matches, sees_validation=sees))

    @property
    def name(self) -> str:
        """Its key in the recipe."""
        return self.arm.name


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
    arguments: RunArguments
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
    own = _names(ExperimentArguments) - _names(RunArguments) | {"output_dir"}
    shared = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in own}
    found = []
    for name, given in arguments.settings.items():
        _check_name("settings", name)
        own_keys = _mapping(f"settings.{name}", given)
        _check_taken(f"settings.{name}", own_keys, _OF_EXPERIMENT, "the experiment, for all cells")
        place = f"settings.{name}: "
        keys = {**one_template({**shared, **others}), **one_template(own_keys, place)}  # of the innermost, any prefix
        run_keys = {key: value for key, value in keys.items() if key not in _keys_of_methods()}
        setting = Setting(str(name), *_arguments(f"settings.{name}", run_keys, RunArguments))
        for method, entry in arguments.methods.items():
            _check_name("methods", method)
            plan, where = _method(str(method), _mapping(f"methods.{method}", entry), keys, arguments.settings)
            if name in where:
                setting.methods[str(method)] = plan
        if "sft" not in setting.methods or setting.methods["sft"].method != "sft":
            raise ConfigError("methods: add `sft: {}`, which every other method is compared with")
        for plan in setting.methods.values():
            _check_budget(plan, setting)
            _check_reference(plan)
            _check_prompts(plan, setting)
        found.append(_choosing(setting))
    return found


_ENTRY_KEYS = ("method", "label", "control", "tune", "settings")


def _names(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


_OF_EXPERIMENT = {"arms", "num_threads", "output_dir", "seed"}
"""Keys of a run that an experiment decides on: by `methods`, `seeds` and its own."""
_UNREAD = (
    (_names(RecipeRowsArguments) - {"max_length", "max_prompt_length", "rl_prompts"})
    | _names(GivenSFTArguments)
    | {"model_name_or_path", "eval_dataset_name", "dataset_test_split"}
    | {"num_validation_samples", "num_test_samples", "sft_max_steps", "sft_num_train_epochs", "sft_most_epochs"}
    | {"reference_fractions", "reference_ema_decay", *TEMPLATE_SETTINGS}
)
"""Keys that a setting's rows and SFT model are made by: a method's own would have no effect."""
UNREAD_BY_CELLS = frozenset(_UNREAD | {"arms"})
"""Keys that decide nothing in a cell. What an SFT run is made by is compared in its own folder."""
_OF_SETTING = (
    _UNREAD
    | (_names(JudgeArguments) - {*MACHINE_KEYS})
    | {"verifier", *(prefix + name for prefix in PREFIXES for name in TEMPLATE_SETTINGS)}
)
"""Keys that all arms of a setting share, or they could not be compared: its rows, its SFT model, and what says which
answer is better."""


def _check_taken(place: str, keys: Iterable[str], elsewhere: Set[str], owner: str) -> None:
    """Refuse keys that something else decides on."""
    for key in keys:
        if key in elsewhere:
            raise ConfigError(f"{place}: {key} is decided by {owner}; leave it out here, and give it there")


@functools.cache
def _keys_of_methods() -> frozenset[str]:
    """Keys of any method beyond those of a run: a setting may give them to all that take them."""
    keys = {key for name in method_names() for key in _names(get_method(name).arguments)}
    return frozenset(keys - _names(RunArguments))


def _method(
    name: str, entry: Mapping[str, Any], keys: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[MethodPlan, list[str]]:
    """A method with the keys of one setting, and the names of the settings that it belongs to."""
    place = f"methods.{name}"
    where = entry.get("settings", list(settings))
    if not isinstance(where, list) or not set(where) <= set(settings):
        raise ConfigError(f"{place}.settings={where!r} must be a list of names among {', '.join(map(str, settings))}")
    kind = str(entry.get("method", name))
    try:
        method = get_method(kind)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}; set method") from None
    tune = _mapping(f"{place}.tune", entry.get("tune") or {})
    own = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    _check_taken(place, [*own, *tune], _OF_EXPERIMENT, "the experiment, for all cells")
    _check_taken(place, [*own, *tune], _OF_SETTING, "the setting, for all its methods")
    foreign = _keys_of_methods() - _names(method.arguments)
    taken = {key: value for key, value in keys.items() if key not in foreign}
    variants = []
    choices = [value if isinstance(value, list) else [value] for value in tune.values()]
    for key, among in zip(tune, choices, strict=True):
        if not among or len(set(map(_short, among))) < len(among):
            raise ConfigError(f"{place}.tune: {key}={among}: give each value once, and at least one")
    for chosen in itertools.product(*choices):
        tuned = dict(zip(tune, chosen, strict=True))
        suffix = "".join(f",{key}={_short(value)}" for key, value in tuned.items())
        variants.append(Variant(name + suffix, *_arguments(place, {**taken, **own, **tuned}, method.arguments)))
        if "purify_rounds" in own and not variants[-1].arguments.purify_rounds:
            given = {*own, *tune}.intersection(OF_BEHAVIOURS)
            try:
                check_no_effect(variants[-1].arguments, given, "with purify_rounds=0")
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None
    label = str(entry.get("label", method.label if name == kind else name.replace("_", " ")))
    control = coerce(entry.get("control", method.control), bool, f"{place}.control")
    return MethodPlan(Arm(name, label, control), kind, tuple(variants)), where


def _arguments(place: str, keys: Mapping[str, Any], kind: type[RunArguments]) -> tuple[RunArguments, dict[str, Any]]:
    """Keys as the arguments that they make, and those for TRL's configs."""
    values, passed = _parse(place, keys, kind)
    try:
        return kind(**with_model_before(values)), passed
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _parse(place: str, keys: Mapping[str, Any], kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of a dataclass, coerced, and those for TRL's configs."""
    hints = typing.get_type_hints(kind)
    names = _names(kind)
    values: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    for key, value in keys.items():
        if key in names:
            values[key] = coerce(value, hints[key], f"{place}: {key}")
        elif any(key.startswith(prefix) and key != prefix for prefix in PREFIXES):
            passed[key] = settled(value)
        else:
            near = difflib.get_close_matches(key, [*names, *_ENTRY_KEYS], n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see densepath experiment --help"
            raise ConfigError(f"{place}: unknown key {key!r}{hint}")
    return values, passed


def matched_with(plan: MethodPlan, variant: Variant) -> str | None:
    """The arm whose FLOPs or seconds a variant is trained for; None where it has a budget of its own."""
    if not get_method(plan.method).matches or variant.arguments.budget == "samples":  # type: ignore[attr-defined]
        return None
    return str(variant.arguments.budget_of)  # type: ignore[attr-defined]


def left_open(plan: MethodPlan) -> set[str]:
    """What of `reference` and `beta` validation has to say for an arm."""
    if not get_method(plan.method).needs_reference:
        return set()
    return {key for key in ("reference", "beta") for each in plan.variants if getattr(each.arguments, key) == "auto"}


def _choosing(setting: Setting) -> Setting:
    """The setting whose SFT run chooses what any of its arms leaves open, though others are given it."""
    keys: dict[str, Any] = {key: "auto" for plan in setting.methods.values() for key in left_open(plan)}
    try:
        arguments = replace(setting.arguments, **keys)
        none = RunArguments()  # may have an effect in another setting, or in a method with rounds
        excused = ("purify_dft",) if arguments.purify_rounds else (*OF_BEHAVIOURS, "purify_dft")
        without = {name: getattr(none, name) for name in excused}
        replace(arguments, **without).check_effect()
    except ConfigError as error:
        raise ConfigError(f"settings.{setting.name}: {error}") from None
    return replace(setting, arguments=arguments)


def _check_reference(plan: MethodPlan) -> None:
    """What the choice of a setting does not ask cannot be left to it."""
    if plan.method == "dpr_capped" and "reference" in left_open(plan):
        raise ConfigError(
            f"methods.{plan.name}: give its reference (0: the model before SFT); the choice of a setting previews the "
            "plain reward alone"
        )


def _check_prompts(plan: MethodPlan, setting: Setting) -> None:
    """The setting reads one set of prompts for DPR, and a method may do without them."""
    for variant in plan.variants:
        prompts = variant.arguments.rl_prompts
        if prompts not in (None, setting.arguments.rl_prompts):
            raise ConfigError(
                f"methods.{plan.name}: rl_prompts={prompts} are not those of settings.{setting.name}: give them "
                "there; null here stands for the prompts of the demonstrations"
            )


def _check_budget(plan: MethodPlan, setting: Setting) -> None:
    """Who is to be matched must be there, and must not wait for its own shadow."""
    for variant in plan.variants:
        name = matched_with(plan, variant)
        if name is None:
            continue
        other = setting.methods.get(name)
        method = None if other is None else get_method(other.method)
        # what is not trained by steps has no compute to match, and what matches itself would wait for its shadow
        if method is None or method.stage is None or method.matches:
            raise ConfigError(
                f"methods.{plan.name}: budget_of={name} must name a trained method of the recipe other than "
                "continued_sft"
            )
        if other is not None and len(other.variants) > 1:
            raise ConfigError(
                f"methods.{plan.name}: budget_of={name} is tuned, and its variants may differ in compute; name an arm "
                "without tune, or set budget: samples"
            )


def _mapping(place: str, value: Any) -> dict[str, Any]:
    """Keys of a part of the recipe."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected `key: value` lines, got {value!r}")
    return underscored({str(key): item for key, item in value.items()}, place)


def _check_name(place: str, name: Any) -> None:
    text = str(name)
    if not text or text.startswith(".") or any(letter in text for letter in "/\\, ="):
        raise ConfigError(f"{place}: the name {text!r} becomes a folder; use letters, digits, - and _")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_").replace(" ", "")
