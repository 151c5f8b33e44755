"""What the demonstrations were found to be made of: behaviours, how much SFT raised each, and which is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.records.brief import brief
from densepath.records.completion import ScoredRow
from densepath.records.estimates import Interval

NEW_LIFT = 2.0
"""Nats of lift from which a behaviour counts as new: a bound of our own, chosen after the experiments."""


@dataclass(frozen=True)
class Behaviour:
    """One consistent way to answer among the demonstrations.

    Attributes:
        number: 1 for the one that began with the lowest rewards, up to K.
        share: of the demonstrations.
        reference_share: of the answers of the model before SFT; None where none were sampled.
        lift: log share less log reference_share, nats: how much SFT raised it. None where it is not known, or where
            the model before SFT never shows it.
        reward: of its demonstrations, nats per square root of a token, mean weighted by responsibility.
        validation: the verdict on its own answers to validation prompts; None without a verifier or judge.
        examples: rows of the training demonstrations, counted from 1, that are its most surely, three or fewer.
        lift_error: standard error of the lift, nats, by the numbers of demonstrations and of answers; None where there
            is no lift.
    """

    number: int
    share: float
    reference_share: float | None
    lift: float | None
    reward: float
    validation: Interval | None = None
    examples: tuple[int, ...] = ()
    lift_error: float | None = None

    __repr__ = brief

    @property
    def is_new(self) -> bool:
        """Whether the model before SFT hardly shows it or, as far as its answers tell, never."""
        return self.reference_share is not None and (self.lift is None or self.lift >= NEW_LIFT)


@dataclass(frozen=True)
class Mixture:
    """The behaviours that were found where K were looked for.

    Attributes:
        behaviours: K of them.
        held_out: log-likelihood of the validation demonstrations under their mixture, nats per demonstration.
    """

    behaviours: tuple[Behaviour, ...]
    held_out: float | None = None

    __repr__ = brief


@dataclass(frozen=True)
class Purification:
    """What became of the demonstrations.

    Attributes:
        mixtures: what was found, one for each K that was tried.
        behaviour: number of the one that was trained on; None where SFT is kept, or no behaviours were sought.
        of: K of the mixture that it is from; None likewise.
        reason: why, in words.
        kept: demonstrations that the final training draws from.
        dropped: that were set aside.
        worst: rows, counted from 1, that were set aside most surely, five or fewer.
        kinds: kind of prompt -> its share among all demonstrations and among those kept.
        warnings: what else a reader has to know.
        trained: whether the SFT model was trained again; where not, it is kept.
        rows: those of `examples` and `worst` with the reward of each token.
        drawn: demonstrations that the final training drew at least once; None where SFT is kept, or in older records.
    """

    mixtures: tuple[Mixture, ...]
    behaviour: int | None
    of: int | None
    reason: str
    kept: int
    dropped: int
    worst: tuple[int, ...] = ()
    kinds: tuple[tuple[str, float, float], ...] = ()
    warnings: tuple[str, ...] = ()
    trained: bool = True
    rows: tuple[ScoredRow, ...] = ()
    drawn: int | None = None

    __repr__ = brief
