"""What judges that run here share: requests become scored things, a window at a time, and their scores judgements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from densepath.errors import DataError
from densepath.judging.protocol import JudgeRequest, check_num_answers
from densepath.judging.verdicts import invalid, judgement_of
from densepath.records.judging import Judgement, Spending

T = TypeVar("T")

WINDOW = 32
"""Requests that are scored together: more fill the forward passes better, and a kill loses more."""


class JudgeHere(ABC, Generic[T]):
    """A `Judge` that charges nothing: it says what is scored of a request, and how the scores are read.

    Args:
        name: what records call the judge.
        num_answers: how many answers a request may have.
    """

    def __init__(self, name: str, num_answers: tuple[int, ...] = (1, 2)) -> None:
        self.name, self.num_answers = name, num_answers

    @property
    def spent(self) -> Spending:
        """Nothing is charged."""
        return Spending()

    def estimate(self, requests: Sequence[JudgeRequest]) -> Spending:
        """Nothing is charged."""
        return Spending()

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        """A judgement of each request, in their order; one that cannot be prepared is invalid, with the reason.

        Raises:
            DataError: a request with another number of answers.
            ModelError, NumericalError: what the judge itself raises.
        """
        check_num_answers(self, requests)
        return self._judged(requests)

    def _judged(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        for start in range(0, len(requests), WINDOW):
            found = [self._or_reason(request) for request in requests[start : start + WINDOW]]
            things = [thing for each in found if not isinstance(each, str) for thing in each]
            scores = iter(self.score(things) if things else ())
            for each in found:
                yield invalid(None, each) if isinstance(each, str) else self.read([next(scores) for _ in each])

    def _or_reason(self, request: JudgeRequest) -> Sequence[T] | str:
        try:
            return self.prepare(request)
        except DataError as error:
            return str(error)

    @abstractmethod
    def prepare(self, request: JudgeRequest) -> Sequence[T]:
        """The things of a request that are scored.

        Raises:
            DataError: they cannot be: the request is invalid.
        """

    @abstractmethod
    def score(self, things: Sequence[T]) -> Sequence[float]:
        """A number for each of the things of several requests."""

    def read(self, scores: Sequence[float]) -> Judgement:
        """The numbers of one request as its judgement: the grade of one answer, of two a preference."""
        return judgement_of_scores(scores)


def judgement_of_scores(scores: Sequence[float]) -> Judgement:
    """The grade of one answer; of two the preference for the first, sigmoid(score_1 - score_2).

    >>> judgement_of_scores([1.0, 1.0]).preference, judgement_of_scores([2.5]).grade
    (0.5, 2.5)
    """
    if len(scores) == 1:
        return judgement_of(scores[0], 1)
    difference = scores[0] - scores[1]
    smaller = 1 / (1 + math.exp(abs(difference)) if abs(difference) < 700 else math.inf)
    return judgement_of(1 - smaller if difference > 0 else smaller, 2)
