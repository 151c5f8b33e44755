"""How good is a judge? Its agreement with the labels of preference pairs, and what it goes by instead."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.data.benchmarks import references_of
from densepath.data.rows import Row, normal_turns
from densepath.errors import DataError
from densepath.evals.figures import credit_figure
from densepath.evals.preferences import check_preference, explicit_prompt
from densepath.judging.games import Match
from densepath.judging.protocol import JudgeRequest, right_answers
from densepath.records.estimates import Comparison, Verdict
from densepath.records.judge_eval import JudgeEvaluation
from densepath.records.judging import Game
from densepath.records.reward_eval import Figure, SetAside
from densepath.stats.games import pair_games
from densepath.stats.seeds import seed_difference
from densepath.stats.win_rate import judge_noise, position_bias

CHOSEN, REJECTED = "chosen", "rejected"
INTERVAL = (
    "95 % over rows: Wilson for shares, bootstrap for the rest; differences paired over rows, p by bootstrap, "
    "verdicts at 5 % after Holm's correction within each figure; better than chance by flipping signs"
)
_OFTEN = {
    Verdict.BETTER: "more often than the labels",
    Verdict.WORSE: "less often than the labels",
    Verdict.TIE: "no difference shown to the labels",
}


@dataclass(frozen=True)
class LabelledPair:
    """Two answers of which a label says that the first is better.

    Attributes:
        row: its number in the data, from 1.
        category: of the row.
        match: the chosen answer as the model's, the rejected one as the baseline's.
    """

    row: int
    category: str
    match: Match

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the chosen answer and of the rejected one."""
        chosen, rejected = self.match.request.answers
        return len(chosen[0]), len(rejected[0])


def labelled_pairs(
    rows: Sequence[Row],
    source: str,
    *,
    max_samples: int | None = None,
    seed: int = 0,
    shows_reference: bool = True,
) -> tuple[list[LabelledPair], list[SetAside]]:
    """The pairs of preference rows, and the rows that say nothing.

    Args:
        rows: with `prompt`, `chosen`, `rejected`, as `reward-eval` reads them.
        source: name of the rows in messages.
        max_samples: pairs drawn with the seed, in the order of the rows; all if None.
        seed: of the draw.
        shows_reference: whether the judge is shown a row's right answer; else `reference` may hold anything.

    Raises:
        DataError: a row that is no preference pair, or whose `reference` is to be shown and no text, with its number;
            or none that can be used.
    """
    pairs, set_aside = [], []
    for number, row in enumerate(rows, start=1):
        try:
            check_preference(row)
            pair = _pair(row, number, shows_reference)
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error}") from None
        if pair.match.request.answers[0] == pair.match.request.answers[1]:
            set_aside.append(SetAside(number, "chosen and rejected are the same text"))
        else:
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{source}: no row can be used; of row {set_aside[0].row}: {set_aside[0].reason}")
    if max_samples is not None and max_samples < len(pairs):
        drawn = sorted(random.Random(seed).sample(range(len(pairs)), max_samples))
        pairs = [pairs[index] for index in drawn]
    return pairs, set_aside


def _pair(row: Row, number: int, shows_reference: bool) -> LabelledPair:
    row = explicit_prompt(row)
    prompt, plain = row["prompt"], isinstance(row["prompt"], str)
    turns = [{"role": "user", "content": prompt}] if plain else normal_turns(prompt)
    answers = tuple((_text(row[name]),) for name in (CHOSEN, REJECTED))
    others = {key: value for key, value in row.items() if key not in (CHOSEN, REJECTED)}  # a judge sees no label
    right = right_answers(references_of(row, 1), 1) if shows_reference else None
    request = JudgeRequest(tuple(turns), answers, reference=right, row=others, plain=plain)
    return LabelledPair(number, str(row.get("category") or "all"), Match(str(number), CHOSEN, REJECTED, request))


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(normal_turns(completion)[-1].get("content", ""))


def evaluate_judge(
    judge: str,
    pairs: Sequence[LabelledPair],
    games: Sequence[Game],
    *,
    seed: int = 0,
    set_aside: Sequence[SetAside] = (),
) -> JudgeEvaluation:
    """The judge's agreement with the labels, beside what a rule of length gives.

    Args:
        judge: its name.
        pairs: that were judged.
        games: of all pairs.
        seed: of the bootstrap.
        set_aside: rows that say nothing.

    Raises:
        DataError: no pair has a verdict in each order that was asked.
    """
    found = pair_games(games, CHOSEN, REJECTED)
    said = dict(zip(found.prompts, found.by_prompt, strict=True))
    kept = [pair for pair in pairs if np.isfinite(said.get(pair.match.question, np.nan))]
    silent = [SetAside(pair.row, "the judge gave no verdict") for pair in pairs if pair not in kept]
    if not kept:
        raise DataError(f"{judge}: no pair has a verdict in each order that was asked; look at its replies")
    preferences = np.array([said[pair.match.question] for pair in kept])
    credits = _credits(preferences - 0.5)
    chance = seed_difference([credits], [np.full(len(kept), 0.5)])
    accuracy = _accuracy(kept, credits, seed)
    value = accuracy.measures[0].value
    better = chance.verdict is Verdict.BETTER
    words = f"{judge} agrees with {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] of {len(kept)} labels"
    return JudgeEvaluation(
        judge,
        rows=len(kept),
        set_aside=tuple(sorted([*set_aside, *silent], key=lambda item: item.row)),
        invalid=found.invalid,
        seed=seed,
        interval=INTERVAL,
        p=chance.p,
        verdict=chance.verdict,
        headline=words if better else None,
        figures=tuple(figure for figure in (accuracy, _prefers_longer(kept, preferences, seed)) if figure),
        position=position_bias(found.by_order),
        noise=judge_noise(found.by_repeat[np.isfinite(found.by_prompt)]),
    )


def _credits(signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 above 0, 0 below, 1/2 at 0."""
    return np.where(np.abs(signs) < 1e-12, 0.5, (signs > 0).astype(np.float64))


def _accuracy(pairs: Sequence[LabelledPair], credits: NDArray[np.float64], seed: int) -> Figure:
    longer = _credits(np.array([float(np.subtract(*pair.lengths)) for pair in pairs]))
    kinds = {1.0: "chosen longer", 0.0: "chosen shorter", 0.5: "same length"}
    return credit_figure(
        "accuracy",
        "share of pairs in which the judge prefers the chosen answer; a tie counts half",
        {"judge": credits, "longer": longer, "shorter": 1 - longer},
        primary="judge",
        chance=0.5,
        groupings={
            "category": [pair.category for pair in pairs],
            "length": [kinds[float(credit)] for credit in longer],
        },
        seed=seed,
    )


def _prefers_longer(pairs: Sequence[LabelledPair], preferences: NDArray[np.float64], seed: int) -> Figure | None:
    """How often the longer answer is preferred, by the judge and by the labels; None where no lengths differ."""
    signs = np.array([np.sign(np.subtract(*pair.lengths)) for pair in pairs])
    told = signs != 0
    if not told.any():
        return None
    figure = credit_figure(
        "prefers_longer",
        "share of pairs with answers of two lengths in which the longer one is preferred; a tie counts half",
        {"judge": _credits((preferences - 0.5) * signs)[told], "label": (signs[told] > 0).astype(np.float64)},
        primary="judge",
        chance=0.5,
        seed=seed,
    )
    return replace(figure, statement=_longer_statement(figure, figure.comparisons[0]))


def _longer_statement(figure: Figure, against: Comparison) -> str:
    mine, label = (measure.value.mean for measure in figure.measures)
    often = _OFTEN[against.verdict]
    return f"the judge prefers the longer answer in {mine:.3f} of the pairs, the labels in {label:.3f}: {often}"
