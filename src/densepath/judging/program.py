"""A verifier as judge: what it says of an answer is the grade; of two answers the higher one is preferred."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.evals.verifiers import Verifier, verdict_on
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
        """The program's grade of each answer; where it fails or says no finite number, that is invalid."""
        return [verdict_on(self._verifier, texts[-1], request.row or {}, self.name) for texts in request.answers]

    def score(self, things: Sequence[float]) -> Sequence[float]:
        """The grades as they are."""
        return things

    def read(self, scores: Sequence[float]) -> Judgement:
        """The grade of one answer; of two the higher one is preferred."""
        if len(scores) == 1:
            return Judgement(grade=scores[0])
        verdict = ">" if scores[0] > scores[1] else "<" if scores[0] < scores[1] else "="
        return Judgement(preference_of(verdict), verdict=verdict)
