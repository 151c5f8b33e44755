"""The protocol of every judge: requests in, judgements out, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from densepath.errors import DataError
from densepath.records.judging import Judgement, Spending


@dataclass(frozen=True)
class JudgeRequest:
    """One answer to grade, or two to compare, with all that a judge may look at.

    Attributes:
        prompt: the turns before the first answer, `{"role": ..., "content": ...}` each.
        answers: one or two; each is a text for every turn that was answered.
        follow_ups: what the user said after each answer but the last: one fewer than an answer has texts.
        reference: a right answer for each turn; None where there is none.
        row: the question's row, which programs and templates read; None where there is none.
        repeat: which of the repeated judgements, from 0: the same request with another number is asked anew.
        plain: whether prompt and answers are plain text, which the model that answered read without a template.

    Raises:
        DataError: no turn, no answer or more than two, or numbers of texts that do not fit.
    """

    prompt: tuple[Mapping[str, Any], ...]
    answers: tuple[tuple[str, ...], ...]
    follow_ups: tuple[str, ...] = ()
    reference: tuple[str, ...] | None = None
    row: Mapping[str, Any] | None = None
    repeat: int = 0
    plain: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise DataError("a request for judgement has no prompt; give the turns before the answer")
        if len(self.answers) not in (1, 2):
            raise DataError(f"a request for judgement has {len(self.answers)} answers; give one or two")
        turns = len(self.follow_ups) + 1
        texts = [*self.answers, *([] if self.reference is None else [self.reference])]
        if any(len(each) != turns for each in texts):
            raise DataError(
                f"a request for judgement has {turns} turns, and answers and reference of {[len(t) for t in texts]}"
            )

    @property
    def switched(self) -> JudgeRequest:
        """The same request with the answers in the other order."""
        return replace(self, answers=self.answers[::-1])

    def conversation(self, answer: int) -> list[dict[str, Any]]:
        """The whole conversation with one of the answers, from 0; its last turn is the answer's last text."""
        turns = [dict(turn) for turn in self.prompt]
        first, *later = self.answers[answer]
        turns.append({"role": "assistant", "content": first})
        for asked, answered in zip(self.follow_ups, later, strict=True):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return turns


def right_answers(references: Sequence[str | None] | None, turns: int) -> tuple[str, ...] | None:
    """The right answers up to a turn, as a request holds them; None where one is missing.

    >>> right_answers(("yes", None), 1), right_answers(("yes", None), 2), right_answers(None, 1)
    (('yes',), None, None)
    """
    known = [text for text in (references or ())[:turns] if text is not None]
    return tuple(known) if len(known) == turns else None


class Judge(Protocol):
    """Whatever says that one answer is better than another, or grades an answer."""

    @property
    def name(self) -> str:
        """What records and pages call it; it holds no key."""

    @property
    def num_answers(self) -> tuple[int, ...]:
        """How many answers a request may have: (1,) for one that grades, (2,) for one that compares, or both."""

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        """A judgement of each request, in their order, each as soon as it is known.

        What cannot be judged is an invalid judgement with its reason, and no error.

        Raises:
            JudgeError: the judge as a whole does not work, or what it may cost is spent.
            DataError: a request with another number of answers, or without what the judge reads.
        """

    def estimate(self, requests: Sequence[JudgeRequest]) -> Spending:
        """What judging the requests would be charged for, about; asks nobody."""

    @property
    def spent(self) -> Spending:
        """What judging has been charged for until now; nothing where the judge runs here."""


def check_num_answers(judge: Judge, requests: Sequence[JudgeRequest]) -> None:
    """Refuse requests that a judge cannot be asked.

    Raises:
        DataError: one with another number of answers than it takes.
    """
    for request in requests:
        if len(request.answers) not in judge.num_answers:
            takes = " or ".join(map(str, judge.num_answers))
            raise DataError(
                f"judge {judge.name} is shown {takes} answers at once, and was given {len(request.answers)}"
            )
