"""Which answers a judge is shown, in which order and how often; and what all games of a pair say together."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from densepath.errors import DataError, JudgeError
from densepath.judging.protocol import Judge, JudgeRequest
from densepath.records.judging import Game, Judgement, Preference
from densepath.stats.games import pair_games

_ROUNDING = 1e-9  # .58 * 100 is less than 58


@dataclass(frozen=True)
class Match:
    """A model's answer to a question, alone or against a baseline's.

    Attributes:
        question: id of the question.
        model: whose answer is judged.
        baseline: what it is compared with; None where it is graded alone.
        request: with the model's answer first; its repeat is not read.

    Raises:
        DataError: a baseline without its answer, or an answer without its baseline.
    """

    question: str
    model: str
    baseline: str | None
    request: JudgeRequest

    def __post_init__(self) -> None:
        if len(self.request.answers) != (1 if self.baseline is None else 2):
            raise DataError(
                f"question {self.question}: {len(self.request.answers)} answers, and the baseline is {self.baseline}"
            )


@dataclass(frozen=True)
class PlannedGame:
    """A game that is still to be judged.

    Attributes:
        match: whose it is.
        switched: whether the baseline's answer is shown first.
        repeat: which of the repeated judgements, from 0.
    """

    match: Match
    switched: bool
    repeat: int

    @property
    def key(self) -> tuple[str, int, str, str | None, bool, int]:
        """What tells it from all others, as `key_of` tells it of a game."""
        return key_of(self.played(Judgement(invalid="not played yet")))

    @property
    def request(self) -> JudgeRequest:
        """What the judge is asked."""
        request = replace(self.match.request, repeat=self.repeat)
        return request.switched if self.switched else request

    def played(self, judgement: Judgement) -> Game:
        """The game, judged."""
        match = self.match
        turn = len(match.request.follow_ups) + 1
        return Game(match.question, turn, match.model, match.baseline, self.switched, self.repeat, judgement)


def key_of(game: Game) -> tuple[str, int, str, str | None, bool, int]:
    """What tells a game from all others: question, turn, model, baseline, order, repeat."""
    return game.question, game.turn, game.model, game.baseline, game.switched, game.repeat


def plan_games(matches: Iterable[Match], *, both_orders: bool = True, repeats: int = 1) -> list[PlannedGame]:
    """The games of all matches: each pair in both orders unless told otherwise, a single answer once; all repeated.

    In one order alone it is drawn for each question and repeat, the same in every call, so that either answer comes
    first equally often.

    Args:
        matches: what is judged.
        both_orders: whether a pair is shown in both orders.
        repeats: how often each is judged.
    """
    games = []
    for match in matches:
        for repeat in range(repeats):
            if match.baseline is None:
                orders: tuple[bool, ...] = (False,)
            elif both_orders:
                orders = (False, True)
            else:
                drawn = hashlib.sha256(f"{match.question}/{len(match.request.follow_ups)}/{repeat}".encode()).digest()
                orders = (drawn[0] % 2 == 1,)
            games += [PlannedGame(match, switched, repeat) for switched in orders]
    return games


def play(
    judge: Judge, planned: Sequence[PlannedGame], *, max_invalid: float = 0.2, of: int | None = None
) -> Iterator[Game]:
    """The games, judged, in their order; what the judge could not say is in them as invalid.

    Args:
        judge: who is asked.
        planned: the games.
        max_invalid: share that may be invalid.
        of: games that it is a share of; None for those that are planned.

    Raises:
        JudgeError: more are invalid, as soon as that is certain, with the most frequent reason; or the judge's own.
        UsageError: the judge cannot be asked at all.
    """
    reasons: Counter[str] = Counter()
    games = len(planned) if of is None else of
    allowed = math.floor(max_invalid * games + _ROUNDING)
    for game, judgement in zip(planned, judge.judge([each.request for each in planned]), strict=True):
        yield game.played(judgement)
        if judgement.invalid is not None:
            reasons[judgement.invalid] += 1
            if reasons.total() > allowed:
                reason, count = reasons.most_common(1)[0]
                raise JudgeError(
                    f"{judge.name}: {reasons.total()} of {games} judgements are invalid, and max_invalid="
                    f"{max_invalid:g} allows {allowed}; {count} of them: {reason}; mend that and run the same command "
                    "again, or raise max_invalid"
                )


def preference_of_pair(games: Iterable[Game]) -> float | None:
    """The preference of `said_of_pair`; None where nothing is left."""
    return said_of_pair(games).value


def said_of_pair(games: Iterable[Game]) -> Preference:
    """What all games of one model at one question and turn say: the mean of both orders, then of the repeats.

    Where the orders disagree a pair counts one half. What counts of games without a verdict is the rule of
    `stats.games.PairGames`.

    Args:
        games: of one pair.
    """
    mine = list(games)
    if not mine:
        return Preference(None)
    found = pair_games(mine, mine[0].model, str(mine[0].baseline))
    value, (first, second) = float(found.by_prompt[0]), map(float, found.by_order[0])
    by_order = None if math.isnan(first) or math.isnan(second) else (first, second)
    return Preference(None if math.isnan(value) else value, by_order)


def grade_of_answer(games: Iterable[Game]) -> float | None:
    """The mean grade of one answer over its repeats; None where no game is valid.

    Args:
        games: of one answer.
    """
    grades = [game.judgement.grade for game in games if game.judgement.grade is not None]
    return math.fsum(grades) / len(grades) if grades else None
