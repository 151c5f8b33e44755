"""How often a 95 % interval of judged figures holds the truth, in simulated judgements.

Each case draws judgements whose truth is known, by a formula or as the figure of very many prompts.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.judged_games import both_orders, game, grade

from densepath.stats import arena_hard as arena
from densepath.stats import length_controlled as length
from densepath.stats.agreement import cohens_kappa
from densepath.stats.arena_hard import Style, arena_hard
from densepath.stats.bootstrap import credit_interval
from densepath.stats.games import pair_games
from densepath.stats.length_controlled import Gamed, length_controlled
from densepath.stats.mt_bench import adjusted_win_rate, mt_bench
from densepath.stats.win_rate import compare_models, win_rate

PROMPTS = 120
MANY = 1_000_000
VERDICTS = [">>", ">", "=", "<", "<<"]


def expit(logits):
    return 1 / (1 + np.exp(-logits))


def chances(rng, prompts=PROMPTS):
    """Of a win, by prompt: prompts differ in how much better the model is."""
    return expit(0.4 + 1.5 * rng.standard_normal(prompts))


def drawn_games(rng, first_place=0.0):
    """Each order of each prompt is judged by a draw; the judge may lean to the first place."""
    games = []
    for index, chance in enumerate(chances(rng)):
        for switched in (False, True):
            wins = rng.uniform() < np.clip(chance + (-first_place if switched else first_place), 0, 1)
            games.append(game(f"q{index}", ">" if wins != switched else "<", switched=switched))
    return games


def of_games(rng):
    found = win_rate(pair_games(drawn_games(rng), "m", "b"))
    return {"win_rate": found.rate, "follows_place": found.position.follows_place}


def truth_of_games(rng):
    chance = chances(rng, MANY)
    return {"win_rate": chance.mean(), "follows_place": 2 * (chance * (1 - chance)).mean()}


def of_preferences(rng):
    """Probabilities, as of AlpacaEval's judge, of two models whose prompts are as hard for both."""
    hard = rng.standard_normal(PROMPTS)
    values = [expit(2 * (shift + hard + rng.standard_normal(PROMPTS))) for shift in (-1.0, 0.5)]
    pairs = [pair_games(both_orders(each, model=name), name, "b") for each, name in zip(values, "mn", strict=True)]
    return {"weighted": win_rate(pairs[0]).rate, "difference": compare_models(pairs)[0].difference}


def truth_of_preferences(rng):
    spread = np.sqrt(2) * rng.standard_normal(MANY)
    low, high = (expit(2 * (shift + spread)).mean() for shift in (-1.0, 0.5))
    return {"weighted": low, "difference": low - high}


def verdict_chances(shift):
    """Of each verdict at a prompt: (..., 5)."""
    cuts = expit(np.array([-1.5, -0.3, 0.3, 1.5]) + np.asarray(shift)[..., None])
    ends = np.concatenate([np.zeros((*cuts.shape[:-1], 1)), cuts, np.ones((*cuts.shape[:-1], 1))], axis=-1)
    return np.diff(ends)[..., ::-1]


def of_verdicts(rng):
    games = []
    for index, each in enumerate(verdict_chances(0.5 + rng.standard_normal(PROMPTS))):
        for switched in (False, True):
            said = str(rng.choice(VERDICTS if not switched else VERDICTS[::-1], p=each[::-1]))
            games.append(game(f"q{index}", said, switched=switched))
    (found,) = arena_hard(games)
    return {
        "arena_hard": found.score,
        "bradley_terry": found.bradley_terry,
        "adjusted": adjusted_win_rate(games, "m", "b").rate,
    }


def truth_of_verdicts(rng):
    each = verdict_chances(0.5 + rng.standard_normal(MANY))[:, ::-1]
    won = each @ [3.0, 1.0, 0.5, 0.0, 0.0]
    score = won.mean() / (each @ [3.0, 1.0, 1.0, 1.0, 3.0]).mean()
    win, lose = each[:, :2].sum(axis=1), each[:, 3:].sum(axis=1)
    return {"arena_hard": score, "bradley_terry": score, "adjusted": 0.5 + ((win**2 - lose**2) / 2).mean()}


def of_style(rng):
    games, styles = [], {}
    for index in range(PROMPTS):
        own, other = (int(each) for each in rng.integers([150, 50], [500, 300]))
        styles["m", f"q{index}"], styles["b", f"q{index}"] = Style(own, 0, 0, 0), Style(other, 0, 0, 0)
        chance = expit(0.3 + 1.5 * (own - other) / (own + other))
        for switched in (False, True):
            wins = rng.uniform() < chance
            games.append(game(f"q{index}", ">" if wins != switched else "<", switched=switched))
    (found,) = arena_hard(games, styles)
    return {"equal_style": found.styles[0].equal_style}


def of_lengths(rng):
    """Preferences drawn by AlpacaEval's own model, of 300 prompts, and gamed rows by the same weight of length.

    Of two nearly even models with a weak effect of length the penalty that is chosen mostly leaves nothing.
    """
    prompts = 300
    difficulty, deltas = rng.standard_normal((2, prompts))
    z = np.tanh(deltas / deltas.std(ddof=1))
    chance = expit(-1.5 * z + 0.6 * difficulty + 0.5)
    gamed_z = np.concatenate([rng.normal(1, 0.8, prompts), rng.normal(-1, 0.8, prompts)])
    gamed_difficulty = np.tile(difficulty, 2)
    gamed_chance = expit(-1.5 * np.tanh(gamed_z) + 0.6 * gamed_difficulty)
    won, gamed_won = ((rng.uniform(size=each.size) < each).astype(float) for each in (chance, gamed_chance))
    exact = length_controlled(won, deltas, difficulty, Gamed(gamed_won, gamed_z, gamed_difficulty))
    flat = (rng.uniform(size=prompts) < expit(-1.5 * z + 0.5)).astype(float)
    near = (rng.uniform(size=prompts) < expit(-0.1 * z + np.log(0.52 / 0.48))).astype(float)
    return {
        "length_controlled": exact.rate,
        "length_adjusted": length_controlled(flat, deltas).rate,
        "nearly_even": length_controlled(near, deltas).rate,
    }


def truth_of_lengths(rng):
    exact = expit(0.6 * rng.standard_normal(MANY) + 0.5).mean()
    return {"length_controlled": exact, "length_adjusted": expit(0.5), "nearly_even": 0.52}


def of_grades(rng):
    grades = np.clip(np.round(7 + 1.5 * rng.standard_normal((80, 1)) + rng.standard_normal((80, 2))), 1, 10)
    missing = rng.uniform(size=grades.shape) < 0.05
    games = [
        grade(f"q{q}", None if missing[q, t] else float(grades[q, t]), turn=t + 1) for q in range(80) for t in range(2)
    ]
    found = mt_bench(games, "m", {f"q{q}": "even" if q % 2 else "odd" for q in range(80)})
    return {"mt_bench": found.mean, "second_turn": found.turns[1], "category": found.categories["odd"]}


def truth_of_grades(rng):
    each = np.clip(np.round(7 + np.sqrt(1.5**2 + 1) * rng.standard_normal(MANY)), 1, 10).mean()
    return {"mt_bench": each, "second_turn": each, "category": each}


def of_raters(rng):
    """Two raters of three labels: the second repeats the first in 70 of 100 items, else draws."""
    first = rng.choice(3, PROMPTS, p=[0.5, 0.3, 0.2])
    second = np.where(rng.uniform(size=PROMPTS) < 0.7, first, rng.choice(3, PROMPTS, p=[0.5, 0.3, 0.2]))
    found = cohens_kappa(("a", "b"), first.tolist(), second.tolist())
    return {"kappa": found.kappa, "agreement": found.agreement}


def truth_of_raters(rng):
    return {"kappa": 0.7, "agreement": 0.7 + 0.3 * (0.25 + 0.09 + 0.04)}


def of_spans(rng):
    return {"length": credit_interval(np.round(np.exp(6 + 0.5 * rng.standard_normal(PROMPTS)) - 400))}


def truth_of_spans(rng):
    return {"length": np.exp(6 + 0.125) - 400}


CASES = {
    "games": (of_games, truth_of_games),
    "preferences": (of_preferences, truth_of_preferences),
    "verdicts": (of_verdicts, truth_of_verdicts),
    "style": (of_style, lambda rng: {"equal_style": expit(0.3)}),
    "lengths": (of_lengths, truth_of_lengths),
    "grades": (of_grades, truth_of_grades),
    "raters": (of_raters, truth_of_raters),
    "spans": (of_spans, truth_of_spans),
}


def coverage(case, draws):
    """Figure -> share of draws whose interval holds the truth."""
    draw, truth = CASES[case]
    true = truth(np.random.default_rng(0))
    held = dict.fromkeys(true, 0)
    for seed in range(1, draws + 1):
        for name, interval in draw(np.random.default_rng(seed)).items():
            held[name] += interval.low <= true[name] <= interval.high
    return {name: count / draws for name, count in held.items()}


@pytest.mark.parametrize("case", CASES)
def test_most_intervals_hold_the_truth(case, monkeypatch):
    for module in (arena, length):
        monkeypatch.setattr(module, "RESAMPLES", 199)
    found = coverage(case, 8)
    assert min(found.values()) >= 5 / 8, found  # fewer come four times in 10,000 if it is 95 %


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_95_of_100_intervals_hold_the_truth(case, monkeypatch):
    for module in (arena, length):
        monkeypatch.setattr(module, "RESAMPLES", 399)
    found = coverage(case, 1000)
    print(found)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found
