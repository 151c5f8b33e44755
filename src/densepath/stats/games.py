"""Games of a model against its baseline as an array: prompts, the two orders, repeats, turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.records.judging import Game

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairGames:
    """What the judge said of one model's answers and its baseline's.

    A turn of a repeat counts where each order that was asked of it has a verdict: the other alone would carry the
    judge's bias for a place.

    Attributes:
        model: whose answers they are.
        baseline: what they are compared with.
        prompts: ids of the questions, in the order in which they came.
        preferences: (prompts, 2, repeats, turns) for the model: shown first, shown second. NaN where nothing was
            asked, and what does not count.
        invalid: games without a verdict.
    """

    model: str
    baseline: str
    prompts: tuple[str, ...]
    preferences: Floats
    invalid: int

    @property
    def by_repeat(self) -> Floats:
        """(prompts, repeats) mean over the turns, of each the mean of its orders; NaN where there is none."""
        return mean_known(mean_known(np.moveaxis(self.preferences, 1, -1)))

    @property
    def by_prompt(self) -> Floats:
        """(prompts,) mean over the repeats; NaN where there is none."""
        return mean_known(self.by_repeat)

    @property
    def by_order(self) -> Floats:
        """(prompts, 2) mean of each order over turns and repeats that were shown in both; NaN where there is none."""
        both = np.isfinite(self.preferences).all(axis=1, keepdims=True)
        return mean_known(mean_known(np.where(both, self.preferences, np.nan)))


def mean_known(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    counts = known.sum(axis=-1)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def pairs_of(games: Sequence[Game]) -> tuple[tuple[str, str], ...]:
    """Each model with what it was compared with, baseline by baseline, in the order in which they appear."""
    found = dict.fromkeys((game.model, game.baseline) for game in games if game.baseline is not None)
    baselines = list(dict.fromkeys(baseline for _, baseline in found))
    return tuple(sorted(found, key=lambda pair: baselines.index(pair[1])))


def pair_games(games: Sequence[Game], model: str, baseline: str) -> PairGames:
    """The games of one model against one baseline.

    Args:
        games: of any models; each question, turn, order and repeat of the two once.
        model: its name.
        baseline: its name.

    Raises:
        ValueError: they have no games, or a game twice.
    """
    mine = _between(games, model, baseline)
    values, seen = _table(mine)
    invalid = int((seen & ~np.isfinite(values)).sum())
    whole = (~seen | np.isfinite(values)).all(axis=1, keepdims=True)  # (prompts, 1, repeats, turns)
    prompts = tuple(dict.fromkeys(game.question for game in mine))
    return PairGames(model, baseline, prompts, np.where(whole, values, np.nan), invalid)


def pair_turns(games: Sequence[Game], model: str, baseline: str) -> tuple[Floats, NDArray[np.bool_]]:
    """The same turn by turn.

    Returns:
        (prompts, 2, repeats, turns) preference for the model, NaN where there is none, and whether it was asked.

    Raises:
        ValueError: they have no games, or a game twice.
    """
    return _table(_between(games, model, baseline))


def _between(games: Sequence[Game], model: str, baseline: str) -> list[Game]:
    mine = [game for game in games if (game.model, game.baseline) == (model, baseline)]
    if not mine:
        raise ValueError(f"{model} has no games against {baseline}")
    return mine


def _table(mine: Sequence[Game]) -> tuple[Floats, NDArray[np.bool_]]:
    place = {prompt: index for index, prompt in enumerate(dict.fromkeys(game.question for game in mine))}
    turns = {turn: index for index, turn in enumerate(sorted({game.turn for game in mine}))}
    shape = (len(place), 2, max(game.repeat for game in mine) + 1, len(turns))
    values, seen = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    for game in mine:
        at = (place[game.question], int(game.switched), game.repeat, turns[game.turn])
        if seen[at]:
            where = f"{game.model} at {game.question}, turn {game.turn}, repeat {game.repeat}"
            raise ValueError(f"{where}: two games of one order")
        seen[at] = True
        if game.preference_of_model is not None:
            values[at] = game.preference_of_model
    return values, seen
