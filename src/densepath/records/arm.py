"""What is evaluated, and what came of it: an arm, and its result at one decoding on one split with one seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from densepath.errors import DataError, NumericalError
from densepath.records.brief import brief

SFT = "sft"
"""Name of the arm that every other is compared with: the SFT model as it is."""
BASE = "base"
"""Name of the arm that SFT was made from: its length, KL and likelihood are no alarm."""

TRUNCATED_WATCH = 0.05
"""Share of answers cut off from which that is said. Ours: it flags, it does not judge."""

SPLITS = ("validation", "test")

UNJUDGED = 0.5
"""Stands where the judge could not say anything; nobody reads it, since the prompt is left out for every arm."""


@dataclass(frozen=True)
class Arm:
    """A policy that is evaluated, and whether it is a control: something that a method under test has to beat.

    Attributes:
        name: as in the recipe.
        label: as shown to a reader.
        control: True for SFT and whatever else a method under test has to beat.
        settings: those that it is meant to be run in; None: all.
        matches: name of the arm whose FLOPs or seconds it is trained for; None: it has a budget of its own.
        sees_validation: whether it is trained on the validation prompts, where its figures then say nothing.

    Raises:
        DataError: no name or label, or an SFT that is no control.
    """

    name: str
    label: str
    control: bool
    settings: tuple[str, ...] | None = None
    matches: str | None = None
    sees_validation: bool = False

    def __post_init__(self) -> None:
        if self.settings is not None:
            object.__setattr__(self, "settings", tuple(self.settings))
        if not self.name or not self.label:
            raise DataError(f"an arm needs a name and a label, got {self.name!r} and {self.label!r}")
        if self.name == SFT and not self.control:
            raise DataError(f"{SFT} is a control; set control to true")


@dataclass(frozen=True)
class Budget:
    """What a training spends beyond SFT; all zero for SFT itself.

    Attributes:
        samples: completions sampled.
        demonstrations: seen, with repetition.
        tokens: trained on.
        flops: of the training.
        seconds: of the training, of all its processes where it was killed.

    Raises:
        NumericalError: NaN or infinity.
        DataError: a negative number.
    """

    samples: float = 0.0
    demonstrations: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            number = float(getattr(self, field.name))
            object.__setattr__(self, field.name, number)
            if not math.isfinite(number):
                raise NumericalError(f"a budget's {field.name} is {number}")
            if number < 0:
                raise DataError(f"a budget's {field.name} is {number}; what was spent cannot be negative")


@dataclass(frozen=True)
class ArmResult:
    """One arm with one seed in one setting, evaluated at one decoding on one split.

    Attributes:
        arm: what was evaluated.
        setting: name of the data and base model, e.g. "habit".
        seed: of the whole run, SFT included.
        decoding: "temperature 1", "greedy".
        split: "validation" or "test".
        values: the metric of each prompt, in the prompts' order, higher is better; None where nothing checks.
        lengths: tokens of each completion, EOS included; as many for each prompt, prompt by prompt.
        truncated: share of completions without EOS within the budget.
        budget: what the training beyond SFT spent.
        nll: negative log-likelihood of each held-out demonstration, nats per token; None where it was not measured.
        kl: log pi_arm - log pi_SFT of each completion, nats; its mean estimates the KL to SFT. None: not measured.
        reward: dense reward of each completion, nats; None where it was not measured.
        entropy: of the policy at each completion's tokens, their mean, nats per token; None where it was not measured.
        unjudged: prompts, from 0, of which the judge could say nothing; what stands in `values` there is not read.
        by_order: of each prompt the judge's preference for the answer where it was shown first, and second; None where
            it was not asked in both orders. None: no judge compares.

    Raises:
        DataError: a field that does not fit.
        NumericalError: NaN or infinity.
    """

    arm: Arm
    setting: str
    seed: int
    decoding: str
    split: str
    values: tuple[float, ...] | None
    lengths: tuple[int, ...]
    truncated: float
    budget: Budget = Budget()
    nll: tuple[float, ...] | None = None
    kl: tuple[float, ...] | None = None
    reward: tuple[float, ...] | None = None
    entropy: tuple[float, ...] | None = None
    unjudged: tuple[int, ...] = ()
    by_order: tuple[tuple[float, float] | None, ...] | None = None

    __repr__ = brief

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(int(length) for length in self.lengths))
        for name in ("values", "nll", "kl", "reward", "entropy"):
            numbers = getattr(self, name)
            if numbers is not None:
                object.__setattr__(self, name, tuple(float(number) for number in numbers))
        for name in ("setting", "decoding"):
            if not getattr(self, name):
                raise DataError(f"a result's {name} is empty; name it")
        if self.split not in SPLITS:
            raise DataError(f"{self}: split must be one of {', '.join(SPLITS)}")
        self._check_lengths()
        if not 0 <= self.truncated <= 1:
            raise DataError(f"{self}: truncated is {self.truncated}; it is a share between 0 and 1")
        for name, number in self._numbers():
            if not math.isfinite(number):
                raise NumericalError(f"{self}: {name} is {number}")

    def _check_lengths(self) -> None:
        prompts = len(self.lengths) if self.values is None else len(self.values)
        if any(not 0 <= prompt < prompts for prompt in self.unjudged):
            raise DataError(f"{self}: unjudged are {self.unjudged}, of {prompts} prompts")
        if not prompts or not self.lengths or len(self.lengths) % prompts:
            raise DataError(
                f"{self}: {prompts} values and {len(self.lengths)} lengths; "
                "give one value a prompt, and as many completions for each"
            )
        if self.by_order is not None and len(self.by_order) != prompts:
            raise DataError(f"{self}: by_order is of {len(self.by_order)} prompts, and there are {prompts}")
        if min(self.lengths) < 0:
            raise DataError(f"{self}: a length is {min(self.lengths)}; lengths are tokens, 0 or more")
        if self.nll is not None and not self.nll:
            raise DataError(f"{self}: nll is of no demonstration; give None where it was not measured")
        for name in ("kl", "reward", "entropy"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) != len(self.lengths):
                raise DataError(f"{self}: {len(numbers)} of {name} and {len(self.lengths)} lengths; one a completion")

    def _numbers(self) -> Iterator[tuple[str, float]]:
        for name in ("values", "nll", "kl", "reward", "entropy"):
            for index, number in enumerate(getattr(self, name) or ()):
                yield f"{name}[{index}]", number

    def without(self, prompts: Collection[int]) -> ArmResult:
        """The result without some of its prompts, from 0; demonstrations are no prompts, and stay.

        Raises:
            DataError: no prompt is left.
        """
        if not prompts or self.values is None:
            return self
        kept = [prompt for prompt in range(len(self.values)) if prompt not in prompts]
        if not kept:
            raise DataError(f"{self}: the judge could say nothing of any prompt; ask another judge")
        each = len(self.lengths) // len(self.values)
        places = [each * prompt + place for prompt in kept for place in range(each)]
        of_completions = (self.kl, self.reward, self.entropy)
        kl, reward, entropy = (each and tuple(each[place] for place in places) for each in of_completions)
        return replace(
            self,
            values=tuple(self.values[prompt] for prompt in kept),
            lengths=tuple(self.lengths[place] for place in places),
            kl=kl,
            reward=reward,
            entropy=entropy,
            unjudged=(),
            by_order=self.by_order and tuple(self.by_order[prompt] for prompt in kept),
        )

    def __str__(self) -> str:
        return f"{self.setting}/{self.arm.name}/seed {self.seed}, {self.decoding}, {self.split}"


def mean_of(values: Sequence[float] | None) -> float | None:
    """Mean of what was measured; None where it was not.

    >>> mean_of((1.0, 3.0)), mean_of(None)
    (2.0, None)
    """
    return None if values is None else math.fsum(values) / len(values)
