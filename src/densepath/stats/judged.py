"""All figures of a benchmark from its games: what `densepath judge` tells and writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.errors import UsageError
from densepath.records.benchmark import Answer, Question
from densepath.records.judged import (
    AdjustedWinRate,
    AlpacaEval,
    ArenaHard,
    Judged,
    LengthControlled,
    StyleControlled,
    WinRate,
)
from densepath.records.judging import Game
from densepath.stats.arena_hard import arena_hard, battles_of, style_of
from densepath.stats.games import PairGames, pair_games, pairs_of
from densepath.stats.length_controlled import FOLDS, Gamed, length_controlled
from densepath.stats.mt_bench import adjusted_win_rate, mt_bench
from densepath.stats.win_rate import alpaca_eval, compare_models, corrected_rates, win_rate

CATEGORY_PROMPTS = 10
"""A category of fewer prompts has no rate of its own: the interval of five holds the truth in less than 90 of 100
simulations, and the clusters of Arena-Hard v0.1 have two. MT-Bench's have ten."""


@dataclass(frozen=True)
class JudgedInputs:
    """Games with what was judged.

    Attributes:
        benchmark: its name.
        table: which statistics it publishes, as `Benchmark.table`.
        judge: its name.
        questions: all of them, in their order.
        answers: of all models and baselines.
        games: of all models.
        gamed: AlpacaEval's gamed rows and the difficulty of each prompt by its place; None where they are not there.
        notes: that the table begins with.
    """

    benchmark: str
    table: str
    judge: str
    questions: Sequence[Question]
    answers: Sequence[Answer]
    games: Sequence[Game]
    gamed: tuple[Gamed, Mapping[int, float]] | None = None
    notes: tuple[str, ...] = ()


def judged(given: JudgedInputs) -> Judged:
    """The figures of each model: win rates against the baseline, and what the benchmark itself publishes.

    A figure that cannot be had (no prompt with a verdict, no scikit-learn) is left out, and a note says why.
    """
    notes = list(given.notes)
    categories = {question.id: question.category for question in given.questions}
    counts = Counter(categories.values())
    shown = {prompt: category for prompt, category in categories.items() if counts[category] >= CATEGORY_PROMPTS}
    whole: list[PairGames] = []
    rates: list[WinRate] = []
    for model, baseline in pairs_of(given.games):
        games = pair_games(given.games, model, baseline)
        if not np.isfinite(games.by_prompt).any():
            notes.append(f"{model} against {baseline}: no prompt has a verdict in each order that was asked")
            continue
        whole.append(games)
        rates.append(win_rate(games, shown if len(counts) > 1 else None, _length_differences(given, games)))
    alone = dict.fromkeys(game.model for game in given.games if game.baseline is None)
    graded = [name for name in alone if any(g.judgement.grade is not None for g in given.games if g.model == name)]
    notes += [f"{name}: none of its answers has a grade" for name in alone if name not in graded]
    turns = [_turns_won(given, games, notes) for games in whole if given.table == "mt_bench"]
    return Judged(
        given.benchmark,
        given.table,
        given.judge,
        len(given.questions),
        win_rates=corrected_rates(rates),
        comparisons=compare_models(whole),
        alpaca_eval=tuple(_alpaca_eval(given, games, notes) for games in whole if given.table == "alpaca_eval"),
        arena_hard=_arena_hard(given, notes) if given.table == "arena_hard" and whole else (),
        mt_bench=tuple(mt_bench(given.games, model, categories) for model in graded),
        mt_bench_pairs=tuple(each for each in turns if each is not None),
        notes=tuple(notes),
    )


def _lengths(given: JudgedInputs, generator: str) -> dict[str, float]:
    """Characters of a generator's answers, all turns together, by question."""
    mine = [answer for answer in given.answers if answer.generator == generator]
    return {answer.id: float(sum(map(len, answer.turns))) for answer in mine}


def _length_differences(given: JudgedInputs, games: PairGames) -> dict[str, float] | None:
    """Characters of the model's answers less the baseline's; None where an answer is not there."""
    own, base = _lengths(given, games.model), _lengths(given, games.baseline)
    if not all(prompt in own and prompt in base for prompt in games.prompts):
        return None
    return {prompt: own[prompt] - base[prompt] for prompt in games.prompts}


def _alpaca_eval(given: JudgedInputs, games: PairGames, notes: list[str]) -> AlpacaEval:
    preferences = games.by_prompt
    lengths = _length_differences(given, games)
    if lengths is None or np.isfinite(preferences).sum() < FOLDS:
        notes.append(f"{games.model}: too few judgements, or no lengths, for a rate at equal lengths")
        return alpaca_eval(games.model, preferences)
    deltas = -np.array([lengths[prompt] for prompt in games.prompts])
    return alpaca_eval(games.model, preferences, _controlled(given, games, deltas, notes))


def _controlled(
    given: JudgedInputs, games: PairGames, deltas: NDArray[np.float64], notes: list[str]
) -> LengthControlled | None:
    difficulties, gamed = None, None
    if given.gamed is not None:
        places = {question.id: question.index for question in given.questions}
        gamed, known = given.gamed
        difficulties = np.array([known.get(places[prompt], np.nan) for prompt in games.prompts])
        if not np.isfinite(difficulties).all():
            notes.append(f"{games.model}: a prompt has no difficulty in the gamed rows; the fit of two terms is given")
            difficulties, gamed = None, None
    try:
        found = length_controlled(games.by_prompt, deltas, difficulties, gamed)
    except UsageError as error:
        notes.append(str(error))
        return None
    if not found.determined:
        notes.append(
            f"{games.model}: length and model tell all that it won from all that it lost, so its judgements do not "
            "determine a rate at equal lengths: the interval of the one that is given says nothing"
        )
    return found


def _turns_won(given: JudgedInputs, games: PairGames, notes: list[str]) -> AdjustedWinRate | None:
    if not np.isfinite(games.by_order).all(axis=1).any():
        return None
    try:
        return adjusted_win_rate(given.games, games.model, games.baseline)
    except ValueError as error:
        notes.append(f"{error} in the first repeat, so there is no rate of turns won")
        return None


def _arena_hard(given: JudgedInputs, notes: list[str]) -> tuple[ArenaHard, ...]:
    try:
        battles_of(given.games)
    except ValueError as error:
        notes.append(f"{error}, so there is no score of Arena-Hard's")
        return ()
    styles = {(answer.generator, answer.id): style_of("\n\n".join(answer.turns)) for answer in given.answers}
    pairs = [(game.model, game.question) for game in given.games if game.baseline is not None]
    pairs += [(game.baseline, game.question) for game in given.games if game.baseline is not None]
    if not all(pair in styles for pair in pairs):
        notes.append("an answer is not there, so style is not controlled")
        return arena_hard(given.games)
    found = arena_hard(given.games, styles)
    for each in found:
        if lacking := [style for style in each.styles if style.rate is None or style.equal_style is None]:
            notes.append(
                f"{each.model} against {each.baseline}: no rate with {_or(lacking)} held fixed, since they, or the "
                "model, tell all that was won from all that was lost, or never vary: any rate would fit"
            )
    return found


def _or(styles: Sequence[StyleControlled]) -> str:
    return " or with ".join(", ".join(style.features) for style in styles)
