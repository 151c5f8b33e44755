"""A verifier as judge: what it says of an answer is the grade; of two answers the higher one is preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from densepath.data.rows import short
from densepath.errors import DataError
from densepath.evals.verifiers import Verifier
from densepath.judging.here import JudgeHere
from densepath.judging.protocol import JudgeRequest
from densepath.records.judging import Judgement, preference_of


class ProgramJudge(JudgeHere[float]):
    """A program that grades an answer from its text and its row; of several turns it reads the last text.

    Args:
        verifier: the program.
        name: what records call the judge.
    """

    def __init__(self, verifier: Verifier, name: str) -> None:
        super().__init__(name)
        self._verifier = verifier

    def prepare(self, request: JudgeRequest) -> list[float]:
        """The program's grade of each answer; no finite number is invalid."""
        return [self._number(self._verifier(texts[-1], request.row or {})) for texts in request.answers]

    def _number(self, said: Any) -> float:
        try:
            if math.isfinite(grade := float(said)):
                return grade
        except (TypeError, ValueError, OverflowError):
            pass
        raise DataError(f"{self.name} says {short(repr(said))} of an answer, which is no finite number")

    def score(self, things: Sequence[float]) -> Sequence[float]:
        """The grades as they are."""
        return things

    def read(self, scores: Sequence[float]) -> Judgement:
        """The grade of one answer; of two the higher one is preferred."""
        if len(scores) == 1:
            return Judgement(grade=scores[0])
        verdict = ">" if scores[0] > scores[1] else "<" if scores[0] < scores[1] else "="
        return Judgement(preference_of(verdict), verdict=verdict)
