"""What a judge says: one judgement, the game that it is of, and what judging took."""

from __future__ import annotations

import math
from dataclasses import dataclass

from densepath.errors import DataError

TURNED = {">>": "<<", ">": "<", "=": "=", "<": ">", "<<": ">>"}
"""Each verdict on two answers, and what it says with the answers in the other order."""


@dataclass(frozen=True)
class Usage:
    """What one call of an endpoint was charged for.

    Attributes:
        prompt_tokens: that were read.
        completion_tokens: that were written, those of the judge's reasoning included.

    Raises:
        DataError: a negative number.
    """

    prompt_tokens: int
    completion_tokens: int

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.completion_tokens) < 0:
            raise DataError(f"{self}: a number of tokens is negative")


@dataclass(frozen=True)
class Preference:
    """What a judge says of an answer against a fixed one, all its judgements together.

    Attributes:
        value: for the answer, from 0 to 1; None where the judge could not say it.
        by_order: the same where the answer was shown first, and where it was shown second; None unless both orders
            were asked and have a verdict.
    """

    value: float | None
    by_order: tuple[float, float] | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one answer, or of two in the order in which they were shown.

    Attributes:
        preference: for the answer that was shown first, from 0 to 1; 1/2 is a tie. None where one answer was graded.
        grade: of the one answer that was shown, higher is better, in the judge's own unit. None where two were
            compared.
        verdict: on two answers where the judge chose from a menu: `>>`, `>`, `=`, `<` or `<<`, the first against the
            second; None where its preference is a probability.
        reply: what the judge wrote, whole; empty where it writes nothing.
        usage: tokens of the call, those of the cache included; None where nothing was charged, or nothing said.
        invalid: why this is no judgement; None where it is one.

    Raises:
        DataError: not exactly one of preference, grade and invalid; a preference outside of [0, 1], a grade that is
            not finite, a verdict that is unknown or contradicts the preference.
    """

    preference: float | None = None
    grade: float | None = None
    verdict: str | None = None
    reply: str = ""
    usage: Usage | None = None
    invalid: str | None = None

    def __post_init__(self) -> None:
        said = [name for name in ("preference", "grade", "invalid") if getattr(self, name) is not None]
        if len(said) != 1:
            raise DataError(f"a judgement has {said}; give one of preference, grade and invalid")
        if self.invalid == "":
            raise DataError("an invalid judgement has no reason; say it")
        if self.preference is not None and not 0 <= self.preference <= 1:
            raise DataError(f"a judgement's preference is {self.preference}; it lies between 0 and 1")
        if self.grade is not None and not math.isfinite(self.grade):
            raise DataError(f"a judgement's grade is {self.grade}; grades are finite")
        if self.verdict is not None:
            self._check_verdict(self.verdict)

    def _check_verdict(self, verdict: str) -> None:
        if verdict not in TURNED:
            raise DataError(f"a judgement's verdict is {verdict!r}; it is one of {' '.join(TURNED)}")
        if self.preference != preference_of(verdict):
            raise DataError(f"a judgement's verdict is {verdict} and its preference {self.preference}")


def preference_of(verdict: str) -> float:
    """For the first of two answers: 1 where it wins, 1/2 at a tie; a strong verdict counts like any other.

    >>> preference_of(">>"), preference_of("="), preference_of("<")
    (1.0, 0.5, 0.0)
    """
    return {">": 1.0, "=": 0.5, "<": 0.0}[verdict[0]]


@dataclass(frozen=True)
class Game:
    """One judgement of a model's answer, alone or against a baseline's answer to the same question.

    Attributes:
        question: id of the question.
        turn: which turn of the conversation is judged, from 1.
        model: whose answer it is.
        baseline: what it is compared with; None where one answer is graded.
        switched: whether the baseline's answer was shown first; False: the model's.
        repeat: which of the repeated judgements, from 0.
        judgement: of the answers as they were shown.

    Raises:
        DataError: a turn or repeat that does not count so, a preference without a baseline, a grade with one.
    """

    question: str
    turn: int
    model: str
    baseline: str | None
    switched: bool
    repeat: int
    judgement: Judgement

    def __post_init__(self) -> None:
        where = f"the game of {self.model} at question {self.question}"
        if self.turn < 1 or self.repeat < 0:
            raise DataError(f"{where}: turn {self.turn}, repeat {self.repeat}; turns count from 1, repeats from 0")
        if self.baseline is None and (self.switched or self.judgement.preference is not None):
            raise DataError(f"{where} has no baseline, so it has a grade and no order")
        if self.baseline is not None and self.judgement.grade is not None:
            raise DataError(f"{where} has a baseline, so it has a preference and no grade")

    @property
    def preference_of_model(self) -> float | None:
        """For the model's answer, whichever order was shown; None where there is none."""
        preference = self.judgement.preference
        return 1 - preference if preference is not None and self.switched else preference

    @property
    def verdict_of_model(self) -> str | None:
        """`>>`, `>`, `=`, `<` or `<<`, the model against the baseline; None where the judge had no menu."""
        verdict = self.judgement.verdict
        return TURNED[verdict] if verdict is not None and self.switched else verdict


@dataclass(frozen=True)
class Spending:
    """What judging took, or would take.

    Attributes:
        calls: of an endpoint, those that failed and were sent again included; 0 where the judge runs here.
        cached: judgements that the cache had.
        prompt_tokens: that the calls read.
        completion_tokens: that the calls wrote; of calls that are still to be made, the most that they may write, and
            0 where nothing limits it.
        cost: of the calls, in the unit of the prices given; None without prices, or where nothing limits it.
        shared: of calls that are still to be made: requests without one, since another is the same.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    shared: int = 0
