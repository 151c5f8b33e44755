"""What a finished cell of an experiment says, and what a method is called: frozen, and checked when made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from densepath.errors import DataError, NumericalError

SFT = "sft"
"""Name of the method that every other is compared with: the SFT model as it is."""

SPLITS = ("validation", "test")
BUDGET = ("samples", "demonstrations", "tokens", "flops", "seconds")
"""What a training spends beyond SFT: completions sampled, demonstrations seen with repetition, tokens trained on,
FLOPs, and seconds."""


@dataclass(frozen=True)
class CellResult:
    """One method with one seed in one setting, evaluated at one decoding on one split.

    Attributes:
        setting: e.g. "habit".
        method: its name in the recipe.
        seed: of the whole cell, SFT included.
        decoding: "temperature 1", "greedy".
        split: "validation" or "test".
        values: the verifier's verdict of each prompt, in the prompts' order; higher is better.
        lengths: tokens of each completion, EOS included; as many for each prompt, prompt by prompt.
        truncated: share of completions without EOS within the budget.
        kl: KL to SFT, nats per completion; None where it was not measured.
        reward: mean dense reward, nats per completion; None where it was not measured.
        budget: what the training beyond SFT spent, each of `BUDGET`; all zero for SFT itself.

    Raises:
        DataError: a field that does not fit.
        NumericalError: NaN or infinity.
    """

    setting: str
    method: str
    seed: int
    decoding: str
    split: str
    values: tuple[float, ...]
    lengths: tuple[int, ...]
    truncated: float
    kl: float | None
    reward: float | None
    budget: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        object.__setattr__(self, "lengths", tuple(int(length) for length in self.lengths))
        object.__setattr__(self, "budget", {str(name): float(value) for name, value in self.budget.items()})
        for name in ("setting", "method", "decoding"):
            if not getattr(self, name):
                raise DataError(f"a cell's {name} is empty; name it")
        if self.split not in SPLITS:
            raise DataError(f"{self}: split must be one of {', '.join(SPLITS)}")
        if not self.values or len(self.lengths) % len(self.values) or not self.lengths:
            raise DataError(
                f"{self}: {len(self.values)} values and {len(self.lengths)} lengths; "
                "give one value a prompt, and as many completions for each"
            )
        if min(self.lengths) < 0:
            raise DataError(f"{self}: a length is {min(self.lengths)}; lengths are tokens, 0 or more")
        if not 0 <= self.truncated <= 1:
            raise DataError(f"{self}: truncated is {self.truncated}; it is a share between 0 and 1")
        missing = [name for name in BUDGET if name not in self.budget]
        if missing:
            raise DataError(f"{self}: the budget lacks {', '.join(missing)}; write 0 for what was not spent")
        numbers = {"kl": self.kl, "reward": self.reward, **{f"budget[{k}]": v for k, v in self.budget.items()}}
        numbers |= {f"values[{index}]": value for index, value in enumerate(self.values)}
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise NumericalError(f"{self}: {name} is {number}")
            if name.startswith("budget") and number is not None and number < 0:
                raise DataError(f"{self}: {name} is {number}; what was spent cannot be negative")

    def __str__(self) -> str:
        return f"{self.setting}/{self.method}/seed {self.seed}, {self.decoding}, {self.split}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return {**asdict(self), "values": list(self.values), "lengths": list(self.lengths)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CellResult:
        """The record that `as_dict` wrote.

        Raises:
            DataError: a field is missing, unknown, or does not fit.
        """
        return cls(**_fields(cls, value))


@dataclass(frozen=True)
class MethodInfo:
    """What a method is called, and whether it is a control: something that a method under test has to beat.

    Attributes:
        name: as in the recipe.
        label: as shown to a reader.
        control: True for SFT and whatever else DPR has to beat; False for a method under test.
        settings: those that it is meant to be run in; None: all.
    """

    name: str
    label: str
    control: bool
    settings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.settings is not None:
            object.__setattr__(self, "settings", tuple(self.settings))
        if not self.name or not self.label:
            raise DataError(f"a method needs a name and a label, got {self.name!r} and {self.label!r}")
        if self.name == SFT and not self.control:
            raise DataError(f"{SFT} is a control; set control to true")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> MethodInfo:
        """The record that `as_dict` wrote.

        Raises:
            DataError: a field is missing or unknown.
        """
        return cls(**_fields(cls, value))


def _fields(cls: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping itself, if it has the fields of `cls` and no others."""
    names = {field.name for field in fields(cls)}
    if set(value) != names:
        missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
        raise DataError(f"{cls.__name__}: missing {missing}, unknown {unknown}; give exactly its fields")
    return dict(value)
