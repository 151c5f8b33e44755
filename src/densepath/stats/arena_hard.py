"""Arena-Hard's score, its style control and its Bradley-Terry form, with intervals over prompts.

    score = sum w s / sum w over games
    s = 1, 1/2, 0 for the model's win, tie, loss;  w = 3 for a strong verdict, else 1

Arena-Hard draws whole battles for its interval: both games of a prompt, and the three copies of a strong verdict,
count as independent, and the interval is of 90 %. It stands beside ours. A prompt with a game without a verdict is
left out.

    style:  logit P(model wins) = strength(model) - strength(baseline) + sum_f b_f z_f,  z_f standardised over battles
    length      (L_m - L_b) / (L_m + L_b)
    the others  (d_m - d_b) / (d_m + d_b + 1),   d = count / (L + 1)

Arena-Hard reads its rate where z is 0, which is the mean style difference of all battles and not equal style; both are
given. Length alone and Markdown alone work too, where Arena-Hard's own code drops its columns of models.

Source: Li et al., From Crowdsourced Data to High-Quality Benchmarks (2406.11939), and `show_result.py` of
arena-hard-auto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.records.estimates import Interval
from densepath.records.judged import ArenaHard, StyleControlled
from densepath.records.judging import Game
from densepath.stats.bootstrap import bootstrap, ratio_interval, replicate_interval
from densepath.stats.logistic import logistic_fit

Floats = NDArray[np.float64]

STRONG = 3.0
"""Weight of a strong verdict."""
FEATURES = ("length", "headers", "lists", "bold")
CONTROLS = (("length",), ("headers", "lists", "bold"), FEATURES)
"""What Arena-Hard holds fixed: length, Markdown, or both."""
RESAMPLES = 999
PUBLISHED_TAIL = 0.05
_FENCED = re.compile("```[^`]*```")
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Style:
    """What style control looks at in an answer.

    Attributes:
        length: in tokens.
        headers: Markdown's, outside of fenced code, as all that follows.
        lists: items of numbered and other lists.
        bold: stretches in bold.
    """

    length: int
    headers: int
    lists: int
    bold: int


def style_of(text: str) -> Style:
    """The style of an answer; tokens are words and marks, where Arena-Hard counts those of GPT-4o's tokenizer.

    >>> style_of("# A list\\n* one **thing**\\n2. another")
    Style(length=13, headers=1, lists=2, bold=1)
    """
    bare = _FENCED.sub("", text)
    return Style(
        len(_WORDS.findall(text)),
        len(re.findall(r"^#{1,6}\s", bare, re.MULTILINE)),
        len(re.findall(r"^\s*(?:\d+\.|[-*+])\s", bare, re.MULTILINE)),
        len(re.findall(r"\*\*[^*\n]+\*\*|__[^_\n]+__", bare)),
    )


@dataclass(frozen=True)
class Battles:
    """Games by model, baseline and prompt: one row for all games of a model at a prompt.

    Attributes:
        players: models and baselines.
        prompts: ids of the questions.
        model: (rows,) index of the model.
        baseline: (rows,) index of the baseline.
        prompt: (rows,) index of the prompt.
        won: (rows,) sum of w s.
        weight: (rows,) sum of w.
        outcomes: (rows, 3) battles lost, tied and won, copies of strong verdicts included.
        dropped: (model, baseline) -> prompts that were left out.
    """

    players: tuple[str, ...]
    prompts: tuple[str, ...]
    model: NDArray[np.int64]
    baseline: NDArray[np.int64]
    prompt: NDArray[np.int64]
    won: Floats
    weight: Floats
    outcomes: Floats
    dropped: Mapping[tuple[str, str], int]


def battles_of(games: Sequence[Game]) -> Battles:
    """The battles of all models.

    Raises:
        ValueError: no prompt has a verdict in each of its games.
    """
    grouped: dict[tuple[str, str, str], list[Game]] = {}
    for game in games:
        if game.baseline is not None:
            grouped.setdefault((game.model, game.baseline, game.question), []).append(game)
    dropped: dict[tuple[str, str], int] = {}
    rows, tallies = [], []
    for (model, baseline, prompt), own in grouped.items():
        whole = all(game.preference_of_model is not None for game in own)
        dropped[model, baseline] = dropped.get((model, baseline), 0) + (not whole)
        if whole:
            rows.append((model, baseline, prompt))
            tallies.append(_tally(own))
    if not rows:
        raise ValueError("no prompt has a verdict in each of its games")
    players = tuple(dict.fromkeys(name for model, baseline, _ in rows for name in (model, baseline)))
    prompts = tuple(dict.fromkeys(prompt for _, _, prompt in rows))
    place = {name: index for index, name in enumerate(players)}
    at = {prompt: index for index, prompt in enumerate(prompts)}
    first, second, asked = np.array([[place[one], place[other], at[prompt]] for one, other, prompt in rows]).T
    figures = np.array(tallies, dtype=np.float64)
    return Battles(
        players, prompts, first, second, asked, figures[:, 0], figures[:, 1], outcomes=figures[:, 2:], dropped=dropped
    )


def _tally(games: Sequence[Game]) -> tuple[float, ...]:
    """Sum of w s, sum of w, and the battles lost, tied and won."""
    won, outcomes = 0.0, [0.0, 0.0, 0.0]
    for game in games:
        preference = game.preference_of_model or 0.0
        weight = STRONG if game.verdict_of_model in (">>", "<<") else 1.0
        won += weight * preference
        outcomes[1 if preference == 0.5 else 2 * (preference > 0.5)] += weight
    return won, sum(outcomes), *outcomes


def arena_hard(
    games: Sequence[Game], styles: Mapping[tuple[str, str], Style] | None = None, seed: int = 0
) -> tuple[ArenaHard, ...]:
    """Arena-Hard's figures for each model against each of its baselines.

    Args:
        games: of all models.
        styles: (generator, question) -> style of its answer, of models and baselines; None for no style control.
        seed: of the bootstraps.

    Raises:
        ValueError: no prompt has a verdict in each of its games.
    """
    battles = battles_of(games)
    pairs = sorted(set(zip(battles.model.tolist(), battles.baseline.tolist(), strict=True)))
    terry = _strengths(battles, None, seed)
    controls = (
        [] if styles is None else [_strengths(battles, _style_columns(battles, styles, f), seed) for f in CONTROLS]
    )
    found = []
    for model, baseline in pairs:
        mine = (battles.model == model) & (battles.baseline == baseline)
        low, high = _published_interval(battles.outcomes[mine].sum(axis=0), seed)
        names = battles.players[model], battles.players[baseline]
        found.append(
            ArenaHard(
                *names,
                score=ratio_interval(battles.won[mine], battles.weight[mine], seed),
                published_low=low,
                published_high=high,
                bradley_terry=terry.rate(model, baseline, int(mine.sum())),
                dropped=battles.dropped[names],
                styles=tuple(
                    StyleControlled(
                        features,
                        fit.rate(model, baseline, int(mine.sum())),
                        fit.rate(model, baseline, int(mine.sum()), equal_style=True),
                        fit.weights(features),
                    )
                    for features, fit in zip(CONTROLS, controls, strict=False)
                ),
            )
        )
    return tuple(found)


def _published_interval(outcomes: Floats, seed: int) -> tuple[float, float]:
    """Arena-Hard's 90 % over battles, of more resamples than its 100: that of battles lost, tied and won."""
    total = int(outcomes.sum())
    drawn = np.random.default_rng(seed).multinomial(total, outcomes / total, size=RESAMPLES)
    low, high = np.quantile(drawn @ np.array([0.0, 0.5, 1.0]) / total, [PUBLISHED_TAIL, 1 - PUBLISHED_TAIL])
    return float(low), float(high)


@dataclass(frozen=True)
class _Columns:
    """Style differences of each row, standardised, and where equal style lies on that scale."""

    values: Floats
    at_equal: Floats


def _style_columns(battles: Battles, styles: Mapping[tuple[str, str], Style], features: Sequence[str]) -> _Columns:
    raw = np.array(
        [
            style_difference(
                styles[battles.players[model], battles.prompts[prompt]],
                styles[battles.players[baseline], battles.prompts[prompt]],
                features,
            )
            for model, baseline, prompt in zip(battles.model, battles.baseline, battles.prompt, strict=True)
        ]
    )
    weight = battles.weight / battles.weight.sum()
    mean = weight @ raw
    # over battles with their copies, as they stand in Arena-Hard's table
    variance = battles.weight @ (raw - mean) ** 2 / max(battles.weight.sum() - 1, 1)
    scale = np.where(variance > 0, np.sqrt(variance), 1.0)
    return _Columns((raw - mean) / scale, -mean / scale)


def style_difference(one: Style, other: Style, features: Sequence[str]) -> list[float]:
    """The style of one answer against another's, feature by feature; two empty answers have the same length."""
    found = []
    for name in features:
        if name == "length":
            found.append((one.length - other.length) / max(one.length + other.length, 1))
        else:
            mine = getattr(one, name) / (one.length + 1)
            theirs = getattr(other, name) / (other.length + 1)
            found.append((mine - theirs) / (mine + theirs + 1))
    return found


@dataclass(frozen=True)
class _Fit:
    """Strengths of the players and weights of the style: the fit to all rows first, then the replicates."""

    players: int
    fitted: Floats
    at_equal: Floats

    def rate(self, model: int, baseline: int, n: int, *, equal_style: bool = False) -> Interval:
        logits = self.fitted[:, model] - self.fitted[:, baseline]
        if equal_style:
            logits = logits + self.fitted[:, self.players :] @ self.at_equal
        rates = 0.5 * (1 + np.tanh(0.5 * logits))
        return replicate_interval(float(rates[0]), rates[1:], n)

    def weights(self, features: Sequence[str]) -> dict[str, float]:
        return dict(zip(features, map(float, self.fitted[0, self.players :]), strict=True))


def _strengths(battles: Battles, columns: _Columns | None, seed: int) -> _Fit:
    """Maximum likelihood over all rows, and over prompts drawn with all their battles."""
    rows, players = len(battles.model), len(battles.players)
    indicators = np.zeros((rows, players))
    indicators[np.arange(rows), battles.model] = 1
    indicators[np.arange(rows), battles.baseline] = -1
    features = indicators if columns is None else np.column_stack([indicators, columns.values])
    targets = battles.won / battles.weight

    def fits(counts: NDArray[np.int64]) -> Floats:
        return logistic_fit(features, targets, counts[:, battles.prompt] * battles.weight)

    whole = fits(np.ones((1, len(battles.prompts)), dtype=np.int64))
    drawn = bootstrap(len(battles.prompts), fits, seed=seed, resamples=RESAMPLES)
    return _Fit(players, np.concatenate([whole, drawn]), np.zeros(0) if columns is None else columns.at_equal)
