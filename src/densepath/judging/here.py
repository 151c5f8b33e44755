"""What judges that run here share: requests become scored things, a window at a time, and their scores judgements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from densepath.errors import DataError
from densepath.judging.protocol import JudgeRequest
from densepath.judging.verdicts import invalid, judgement_of
from densepath.records.judging import Judgement

T = TypeVar("T")

WINDOW = 32
"""Requests that are scored together: more fill the forward passes better, and a kill loses more."""


def judged(
    requests: Sequence[JudgeRequest],
    prepare: Callable[[JudgeRequest], Sequence[T]],
    score: Callable[[Sequence[T]], Sequence[float]],
    read: Callable[[Sequence[float]], Judgement],
) -> Iterator[Judgement]:
    """A judgement of each request, in order; one that cannot be prepared is invalid, with the reason.

    Args:
        requests: what to judge.
        prepare: a request -> the things of it that are scored. Raises `DataError` where they cannot be.
        score: things of several requests -> a number each.
        read: the numbers of one request -> its judgement.
    """
    for start in range(0, len(requests), WINDOW):
        found = [_prepared(request, prepare) for request in requests[start : start + WINDOW]]
        things = [thing for each in found if not isinstance(each, str) for thing in each]
        scores = iter(score(things) if things else ())
        for each in found:
            yield invalid(None, each) if isinstance(each, str) else read([next(scores) for _ in each])


def _prepared(request: JudgeRequest, prepare: Callable[[JudgeRequest], Sequence[T]]) -> Sequence[T] | str:
    try:
        return prepare(request)
    except DataError as error:
        return str(error)


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
