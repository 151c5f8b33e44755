"""Arena-Hard's formulas against a slow implementation of its own, written row by row from the published ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from tests.judged_games import game

from densepath.stats import arena_hard as module
from densepath.stats.arena_hard import CONTROLS, FEATURES, Style, arena_hard, style_difference, style_of

LABELS = {">>": [1, 1, 1], ">": [1], "=": [0.5], "<": [0], "<<": [0, 0, 0]}
BACK = {">>": "<<", ">": "<", "=": "=", "<": ">", "<<": ">>"}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 99)


def drawn(seed=0, prompts=60):
    """Verdicts of two games for three models, the second as it was shown, with some that cannot be read; styles."""
    rng = np.random.default_rng(seed)
    verdicts, styles = {}, {}
    for index in range(prompts):
        for model, chances in (("m", [0.2, 0.3, 0.2, 0.2, 0.1]), ("n", [0.1, 0.2, 0.2, 0.3, 0.2]), ("b", None)):
            length = int(rng.integers(1, 400))
            styles[model, f"q{index}"] = Style(length, *(int(each) for each in rng.integers(0, 6, 3)))
            if chances is not None:
                pair = list(rng.choice([">>", ">", "=", "<", "<<"], 2, p=chances))
                verdicts[model, f"q{index}"] = [None if rng.uniform() < 0.03 else str(each) for each in pair]
    games = []
    for (model, question), (first, second) in verdicts.items():
        games.append(game(question, first, model=model))
        games.append(game(question, None if second is None else BACK[second], model=model, switched=True))
    return verdicts, styles, games


def rows_of(verdicts):
    """Theirs: one row a battle, three for a strong verdict, prompts with an unreadable game left out."""
    for (model, question), pair in verdicts.items():
        if None not in pair:
            for said in pair:
                yield from ((model, question, outcome) for outcome in LABELS[said])


def test_the_score_and_what_is_dropped():
    verdicts, _, games = drawn()
    found = {each.model: each for each in arena_hard(games)}
    for model in "mn":
        outcomes = [outcome for name, _, outcome in rows_of(verdicts) if name == model]
        assert found[model].score.mean == pytest.approx(np.mean(outcomes))
        assert found[model].dropped == sum(None in pair for (name, _), pair in verdicts.items() if name == model)
        assert found[model].bradley_terry.mean == pytest.approx(found[model].score.mean, abs=1e-6)  # one baseline
        rng = np.random.default_rng(1)
        means = [np.mean(rng.choice(outcomes, len(outcomes))) for _ in range(2000)]
        assert found[model].published_low == pytest.approx(np.quantile(means, 0.05), abs=0.02)
        assert found[model].published_high == pytest.approx(np.quantile(means, 0.95), abs=0.02)
        # both games and the copies of a prompt are one unit, and 95 % are more than 90 %
        assert found[model].score.high - found[model].score.low > (
            found[model].published_high - found[model].published_low
        )


def slow_style_control(verdicts, styles, features):
    """Theirs, for any features: differences row by row, standardised over rows, and a fit by a plain search."""
    rows = list(rows_of(verdicts))
    raw = []
    for model, question, _ in rows:
        one, other = styles[model, question], styles["b", question]
        differences = []
        for name in features:
            if name == "length":
                differences.append((one.length - other.length) / (one.length + other.length))
            else:
                mine, theirs = (getattr(each, name) / (each.length + 1) for each in (one, other))
                differences.append((mine - theirs) / (mine + theirs + 1))
        raw.append(differences)
    raw = np.array(raw)
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0, ddof=1)
    players = ["b", "m", "n"]
    design = np.array([[(name == model) - (name == "b") for name in players] for model, _, _ in rows], dtype=float)
    design = np.hstack([design, scaled])
    outcomes = np.array([outcome for *_, outcome in rows])

    def loss(at):
        logits = design @ at
        return np.sum(np.logaddexp(0, logits) - outcomes * logits)

    best = minimize(loss, np.zeros(design.shape[1]), tol=1e-12, options={"maxiter": 5000}).x
    equal = float(best[3:] @ (-raw.mean(axis=0) / raw.std(axis=0, ddof=1)))
    rates = {name: (best[players.index(name)] - best[0]) for name in "mn"}
    return {name: (expit(logit), expit(logit + equal)) for name, logit in rates.items()}, best[3:]


def expit(logit):
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("features", CONTROLS, ids=["length", "markdown", "both"])
def test_style_control(features):
    verdicts, styles, games = drawn()
    expected, weights = slow_style_control(verdicts, styles, features)
    for found in arena_hard(games, styles):
        (style,) = (each for each in found.styles if each.features == features)
        assert (style.rate.mean, style.equal_style.mean) == pytest.approx(expected[found.model], abs=1e-5)
        assert list(style.weights.values()) == pytest.approx(weights, abs=1e-4)
        assert style.rate.low < style.rate.mean < style.rate.high


def test_a_judge_that_goes_by_length_alone_is_even_at_equal_style():
    """The model writes longer nearly always; the verdict is drawn by the relative lengths alone."""
    rng = np.random.default_rng(0)
    games, styles = [], {}
    for index in range(500):
        one, other = int(rng.integers(100, 500)), int(rng.integers(50, 250))
        styles["m", f"q{index}"], styles["b", f"q{index}"] = Style(one, 0, 0, 0), Style(other, 0, 0, 0)
        chance = expit(3 * (one - other) / (one + other))
        for switched in (False, True):
            wins = rng.uniform() < chance
            games.append(game(f"q{index}", ">" if wins != switched else "<", switched=switched))
    (found,) = arena_hard(games, styles)
    length = found.styles[0]
    assert found.score.mean > 0.65
    assert length.equal_style.low < 0.5 < length.equal_style.high
    assert length.rate.mean > 0.65  # Arena-Hard's zero is the mean difference, which is no equal style


def test_a_difference_by_hand():
    one, other = Style(99, 10, 0, 5), Style(49, 0, 0, 5)
    mine, theirs = 5 / 100, 5 / 50
    assert style_difference(one, other, FEATURES) == pytest.approx(
        [50 / 148, 0.1 / 1.1, 0.0, (mine - theirs) / (mine + theirs + 1)]
    )
    assert style_difference(Style(0, 0, 0, 0), Style(0, 0, 0, 0), FEATURES) == [0, 0, 0, 0]


def test_what_stands_in_code_is_no_style():
    assert style_of("```\n# not a header\n- none\n**none**\n```\n# one\n  3. two\n**three** __four__") == Style(
        28, 1, 1, 2
    )


def test_each_baseline_has_figures_of_its_own():
    """Arena-Hard v2.0 filters its battles by category, each with a baseline, before it standardises and fits."""
    _, styles, games = drawn(prompts=40)
    creative, creative_games = (drawn(seed=1, prompts=20)[place] for place in (1, 2))
    creative = {
        (name, f"c{question}"): replace(style, length=5 * style.length) for (name, question), style in creative.items()
    }
    creative = {("c" if name == "b" else name, question): style for (name, question), style in creative.items()}
    creative_games = [replace(each, question=f"c{each.question}", baseline="c") for each in creative_games]
    alone = arena_hard(games, styles) + arena_hard(creative_games, creative)
    assert arena_hard(games + creative_games, styles | creative) == alone
    silent = [game(f"q{index}", None, baseline="d") for index in range(3)]
    assert arena_hard(games + silent, styles) == alone[:2]


def test_a_judge_without_a_menu_and_several_baselines():
    games = [game("q0", 0.7), game("q0", 0.2, switched=True), game("q1", 0.5, baseline="c")]
    against_b, against_c = arena_hard(games)
    assert (against_b.score.mean, against_b.baseline) == (pytest.approx(0.75), "b")
    assert (against_c.score.mean, against_c.baseline) == (0.5, "c")
    with pytest.raises(ValueError, match="no prompt has a verdict"):
        arena_hard([game("q0", None)])


def ruled(rule, lengths=lambda rng: int(rng.integers(50, 200)), prompts=40, models=("m", "n")):
    """Figures of models whose games end as a rule says by name, length and chance; the baseline writes 100 tokens."""
    rng = np.random.default_rng(0)
    games, styles = [], {}
    for index in range(prompts):
        styles["b", f"q{index}"] = Style(100, 0, 0, 0)
        for model in models:
            length = lengths(rng)
            styles[model, f"q{index}"] = Style(length, 0, 0, 0)
            wins = rule(model, length, rng.uniform())
            for switched in (False, True):
                games.append(game(f"q{index}", ">" if wins != switched else "<", switched=switched, model=model))
    return arena_hard(games, styles)


def test_style_that_tells_all_wins_apart_has_no_figure():
    """Any slope above some would fit: the figure is where the search ended (0.0 at a weight of hundreds)."""
    (found,) = ruled(lambda model, length, chance: length > 100, models=("m",))
    length, markdown, both = found.styles
    assert (length.rate, length.equal_style, dict(length.weights)) == (None, None, {})
    assert (both.rate, both.equal_style) == (None, None)
    assert markdown.rate.mean == markdown.equal_style.mean == pytest.approx(found.score.mean)  # there is no Markdown


def test_a_model_that_wins_all_takes_no_figure_from_the_others():
    first, second = ruled(lambda model, length, chance: model == "m" or chance < 0.4)
    assert (first.score.mean, first.bradley_terry.mean) == (1.0, pytest.approx(1.0))  # the score in another form
    assert [(each.rate, each.equal_style) for each in first.styles] == [(None, None)] * 3
    for style in second.styles:
        assert style.rate.low < style.rate.mean < style.rate.high
        assert style.equal_style is not None
    assert set(second.styles[2].weights) == {"length"}  # nothing varies but that


def test_a_length_that_never_varies_has_no_rate_at_equal_lengths():
    (found,) = ruled(lambda model, length, chance: chance < 0.4, lengths=lambda rng: 150, models=("m",))
    assert found.styles[0].rate.mean == pytest.approx(found.score.mean)
    assert found.styles[0].equal_style is None
