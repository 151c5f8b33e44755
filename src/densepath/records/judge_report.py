"""What `densepath judge` tells: the figures, and the pairs and points that its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from densepath.records.brief import brief
from densepath.records.completion import ScoredCompletion
from densepath.records.judged import Judged
from densepath.records.judging import Spending


@dataclass(frozen=True)
class ShownAnswer:
    """An answer on the page.

    Attributes:
        generator: whose it is.
        text: of the turn that was judged.
        scored: its tokens with their dense reward; None where no reward was given, or it cannot read the answer.
    """

    generator: str
    text: str
    scored: ScoredCompletion | None = None


@dataclass(frozen=True)
class ShownPair:
    """A question whose answers the judge told apart most clearly, or an answer with one of its extreme grades.

    Attributes:
        question: id of it.
        row: of the question in its file, from 1.
        category: of it; empty where it has none.
        turn: which turn was judged, from 1.
        prompt: what was asked, as text.
        answers: the model's, and the baseline's where there is one.
        preference: for the model, from 0 to 1, over all games of the pair; None where an answer was graded.
        grade: mean over the repeats; None where two answers were compared.
        replies: what the judge wrote, each once.
    """

    question: str
    row: int
    category: str
    turn: int
    prompt: str
    answers: tuple[ShownAnswer, ...]
    preference: float | None
    grade: float | None
    replies: tuple[str, ...] = ()

    __repr__ = brief


@dataclass(frozen=True)
class JudgeReport:
    """All that the page of `densepath judge` shows.

    Attributes:
        judged: the figures.
        source: of the questions.
        models: name -> where its answers are from.
        games: that were judged.
        invalid: of these, games without a verdict.
        spent: what judging took in this call of the command.
        lengths: model -> (characters of its answer less the baseline's, preference for it) of each question.
        pairs: the most decisive ones, each model's in turn.
    """

    judged: Judged
    source: str
    models: Mapping[str, str]
    games: int
    invalid: int
    spent: Spending
    lengths: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    pairs: tuple[ShownPair, ...] = ()

    __repr__ = brief
