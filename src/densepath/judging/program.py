"""A verifier as judge: what it says of an answer is the grade; of two answers the higher one is preferred."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from densepath.data.rows import short
from densepath.errors import DataError
from densepath.evals.verifiers import Verifier
from densepath.judging.here import judged
from densepath.judging.protocol import JudgeRequest, check_num_answers
from densepath.records.judging import Judgement, Spending, preference_of


class ProgramJudge:
    """A program that grades an answer from its text and its row; of several turns it reads the last text.

    Args:
        verifier: the program.
        name: what records call the judge.
    """

    num_answers = (1, 2)

    def __init__(self, verifier: Verifier, name: str) -> None:
        self.name = name
        self._verifier = verifier

    @property
    def spent(self) -> Spending:
        """Nothing is charged."""
        return Spending()

    def estimate(self, requests: Sequence[JudgeRequest]) -> Spending:
        """Nothing is charged."""
        return Spending()

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        """A judgement of each request, in their order; see `Judge`. A row that the program cannot read is invalid, and
        so is what it says if that is no finite number.

        Raises:
            DataError: a request with another number of answers.
        """
        check_num_answers(self, requests)
        return judged(requests, self._graded, list, _read)

    def _graded(self, request: JudgeRequest) -> list[float]:
        return [self._number(self._verifier(texts[-1], request.row or {})) for texts in request.answers]

    def _number(self, said: Any) -> float:
        try:
            if math.isfinite(grade := float(said)):
                return grade
        except (TypeError, ValueError, OverflowError):
            pass
        raise DataError(f"{self.name} says {short(repr(said))} of an answer, which is no finite number")


def _read(grades: Sequence[float]) -> Judgement:
    if len(grades) == 1:
        return Judgement(grade=grades[0])
    verdict = ">" if grades[0] > grades[1] else "<" if grades[0] < grades[1] else "="
    return Judgement(preference_of(verdict), verdict=verdict)
