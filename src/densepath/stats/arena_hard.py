"""Arena-Hard's score, its style control and its Bradley-Terry form, with intervals over prompts.

    score = sum w s / sum w over games
    s = 1, 1/2, 0 for the model's win, tie, loss;  w = 3 for a strong verdict, else 1

Arena-Hard draws whole battles for its interval: both games of a prompt, and the three copies of a strong verdict,
count as independent, and the interval is of 90 %. It stands beside ours. A prompt with a game without a verdict is
left out.

    style:  logit P(model wins) = strength(model) + sum_f b_f z_f,  z_f standardised over the battles of one baseline
    length      (L_m - L_b) / (L_m + L_b)
    the others  (d_m - d_b) / (d_m + d_b + 1),   d = count / (L + 1)

Strengths are less that of the baseline. Each baseline has a fit of its own, to all models against it: v2.0 has two
categories with a baseline each, and Arena-Hard takes one category before it standardises and fits. It reads its rate
where z is 0, which is the mean style difference of those battles and not equal style; both are given. Length alone and
Markdown alone work too, where Arena-Hard's own code drops its columns of models. A rate that the battles do not
determine, since style or model tells all that were won from all that were lost, is left out.

Source: Li et al., From Crowdsourced Data to High-Quality Benchmarks (2406.11939), and `show_result.py` of
arena-hard-auto.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.records.estimates import Interval
from densepath.records.judged import ArenaHard, StyleControlled
from densepath.records.judging import Game
from densepath.stats.bootstrap import bootstrap, ratio_interval, replicate_interval
from densepath.stats.logistic import determined, logistic_fit

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
    """Games against one baseline, by model and prompt: one row for all games of a model at a prompt.

    Attributes:
        models: by name.
        baseline: its name.
        prompts: ids of the questions.
        model: (rows,) index of the model.
        prompt: (rows,) index of the prompt.
        won: (rows,) sum of w s.
        weight: (rows,) sum of w.
        outcomes: (rows, 3) battles lost, tied and won, copies of strong verdicts included.
        dropped: model -> prompts that were left out.
    """

    models: tuple[str, ...]
    baseline: str
    prompts: tuple[str, ...]
    model: NDArray[np.int64]
    prompt: NDArray[np.int64]
    won: Floats
    weight: Floats
    outcomes: Floats
    dropped: Mapping[str, int]


def battles_of(games: Sequence[Game]) -> tuple[Battles, ...]:
    """The battles of all models against each baseline of which any prompt has a verdict in each of its games.

    Raises:
        ValueError: no prompt has.
    """
    baselines = dict.fromkeys(game.baseline for game in games if game.baseline is not None)
    found = [_battles([game for game in games if game.baseline == each], each) for each in baselines]
    whole = tuple(each for each in found if each is not None)
    if not whole:
        raise ValueError("no prompt has a verdict in each of its games")
    return whole


def _battles(games: Sequence[Game], baseline: str) -> Battles | None:
    grouped: dict[tuple[str, str], list[Game]] = {}
    for game in games:
        grouped.setdefault((game.model, game.question), []).append(game)
    rows = [key for key, own in grouped.items() if all(game.preference_of_model is not None for game in own)]
    if not rows:
        return None
    models, prompts = (tuple(dict.fromkeys(names)) for names in zip(*rows, strict=True))
    at = {prompt: index for index, prompt in enumerate(prompts)}
    model, prompt = np.array([(models.index(one), at[asked]) for one, asked in rows]).T
    figures = np.array([_tally(grouped[key]) for key in rows], dtype=np.float64)
    dropped = Counter(name for name, _ in grouped.keys() - set(rows))
    return Battles(
        models,
        baseline,
        prompts,
        model,
        prompt,
        figures[:, 0],
        figures[:, 1],
        outcomes=figures[:, 2:],
        dropped=dropped,
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
    return tuple(each for battles in battles_of(games) for each in _figures(battles, styles, seed))


def _figures(battles: Battles, styles: Mapping[tuple[str, str], Style] | None, seed: int) -> Iterator[ArenaHard]:
    terry = _strengths(battles, None, seed)
    controls = (
        [] if styles is None else [_strengths(battles, _style_columns(battles, styles, f), seed) for f in CONTROLS]
    )
    for model, name in enumerate(battles.models):
        mine = battles.model == model
        low, high = _published_interval(battles.outcomes[mine].sum(axis=0), seed)
        yield ArenaHard(
            name,
            battles.baseline,
            score=ratio_interval(battles.won[mine], battles.weight[mine], seed),
            published_low=low,
            published_high=high,
            bradley_terry=terry.limit(model, int(mine.sum())),
            dropped=battles.dropped[name],
            styles=tuple(
                StyleControlled(
                    features,
                    fit.rate(model, int(mine.sum())),
                    fit.rate(model, int(mine.sum()), equal_style=True),
                    fit.weights(features),
                )
                for features, fit in zip(CONTROLS, controls, strict=False)
            ),
        )


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
                styles[battles.models[model], battles.prompts[prompt]],
                styles[battles.baseline, battles.prompts[prompt]],
                features,
            )
            for model, prompt in zip(battles.model, battles.prompt, strict=True)
        ]
    )
    weight = battles.weight / battles.weight.sum()
    mean = weight @ raw
    # over battles with their copies, as they stand in Arena-Hard's table
    variance = battles.weight @ (raw - mean) ** 2 / max(battles.weight.sum() - 1, 1)
    scale = np.where(np.ptp(raw, axis=0) > 0, np.sqrt(variance), 1.0)  # of one value the variance is but rounding
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
    """Strengths of the models and weights of the style: the fit to all rows first, then the replicates.

    Attributes:
        models: how many they are.
        fitted: (1 + resamples, models + features).
        at_equal: (features,) where equal style lies.
        at_mean: (1 + resamples, features) where the mean style difference of the same battles lies.
        known: (2 * models + features,) whether the rows determine each model's rate, its rate at equal style, and
            each feature's weight.
    """

    models: int
    fitted: Floats
    at_equal: Floats
    at_mean: Floats
    known: NDArray[np.bool_]

    def rate(self, model: int, n: int, *, equal_style: bool = False) -> Interval | None:
        """None where the rows do not determine it."""
        known = self.known[model + self.models * equal_style]
        return self.limit(model, n, equal_style=equal_style) if known else None

    def limit(self, model: int, n: int, *, equal_style: bool = False) -> Interval:
        """What the rate of the model tends to: without style there is but one way, to 1 where it wins all battles."""
        style = self.fitted[:, self.models :]
        logits = self.fitted[:, model] + (style * (self.at_equal if equal_style else self.at_mean)).sum(axis=1)
        rates = 0.5 * (1 + np.tanh(0.5 * logits))
        return replicate_interval(float(rates[0]), rates[1:], n, parameters=1 + style.shape[1])

    def weights(self, features: Sequence[str]) -> dict[str, float]:
        """Of the features that have one."""
        found = zip(features, map(float, self.fitted[0, self.models :]), self.known[2 * self.models :], strict=True)
        return {name: weight for name, weight, known in found if known}


def _strengths(battles: Battles, columns: _Columns | None, seed: int) -> _Fit:
    """Maximum likelihood over all rows, and over prompts drawn with all their battles."""
    count = len(battles.models)
    indicators = np.eye(count)[battles.model]
    features = indicators if columns is None else np.column_stack([indicators, columns.values])
    at_equal = np.zeros(0) if columns is None else columns.at_equal
    targets = battles.won / battles.weight
    styles = np.zeros((len(targets), 0)) if columns is None else columns.values

    def fits(counts: NDArray[np.int64]) -> Floats:
        weights = counts[:, battles.prompt] * battles.weight
        means = weights @ styles / weights.sum(axis=1, keepdims=True)
        return np.column_stack([logistic_fit(features, targets, weights), means])

    whole = fits(np.ones((1, len(battles.prompts)), dtype=np.int64))
    drawn = bootstrap(len(battles.prompts), fits, seed=seed, resamples=RESAMPLES)
    units = np.eye(features.shape[1])
    alike = np.column_stack([np.eye(count), np.tile(at_equal, (count, 1))])
    points = np.concatenate([units[:count], alike, units[count:]])
    known = determined(features, battles.weight, whole[0, : features.shape[1]], points)
    fitted, at_mean = np.split(np.concatenate([whole, drawn]), [features.shape[1]], axis=1)
    return _Fit(count, fitted, at_equal, at_mean, known)
