"""The length-controlled rate against alpaca-eval's own figures, and planted judges."""

from __future__ import annotations

import builtins
import math
import os
import warnings
from inspect import Parameter

import numpy as np
import pytest
from benchmarks.length_controlled import gamed_rows, made_up_models, read_judgements

from densepath.data.gamed import is_published, read_gamed
from densepath.errors import DataError, MissingFileError, UsageError
from densepath.records.estimates import Interval
from densepath.stats import length_controlled as module
from densepath.stats.length_controlled import Gamed, _lasso, length_controlled
from densepath.stats.win_rate import alpaca_eval

THEIRS = {
    "weak": (10.895174976584753, 0.3762393693944376, 10.799200530999016),
    "even": (54.36423579077001, 0.22683212855386722, 54.29208503305611),
    "strong": (86.65210370447113, 0.27304366425058896, 86.69945429476319),
}
"""(rate of length_controlled_v1, its standard error, rate of length_controlled_minimal) in percent, of the models
that `benchmarks/length_controlled.py` makes up: by alpaca-eval 0.6.6 with scikit-learn 1.9.1, as its docstring says.
"""


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    rows = gamed_rows(805, rng)
    columns = ("preference", "std_delta_len", "instruction_difficulty")
    gamed = Gamed(*(np.array([row[name] for row in rows]) for name in columns))
    return gamed, made_up_models(805, gamed.difficulties[:805], rng)


def ours(model):
    preferences = np.array(
        [math.nan if value is None else (0.5 if value == 0 else value - 1) for value in model["preference"]]
    )
    return preferences, np.subtract(model["length_1"], model["length_2"]).astype(float)


@pytest.mark.parametrize("name", THEIRS)
def test_as_alpaca_eval_has_it(cases, name, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 99)
    gamed, models = cases
    preferences, deltas = ours(next(model for model in models if model["model"] == name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # arguments that scikit-learn will forget
        exact = length_controlled(preferences, deltas, gamed.difficulties[:805], gamed)
        adjusted = length_controlled(preferences, deltas)
    assert exact.determined
    assert adjusted.determined
    found = (100 * exact.rate.mean, 100 * exact.published_error, 100 * adjusted.rate.mean)
    assert found == pytest.approx(THEIRS[name], abs=1e-6)
    assert (exact.name, adjusted.name) == ("length_controlled", "length_adjusted")
    assert exact.rate.low < exact.rate.mean < exact.rate.high
    assert exact.rate.n == np.isfinite(preferences).sum()


@pytest.mark.skipif("ALPACA_EVAL_JUDGEMENTS" not in os.environ, reason="no file of published judgements is named")
def test_published_judgements_give_the_published_figures():
    models = read_judgements(os.environ["ALPACA_EVAL_JUDGEMENTS"])
    for model in models:
        found, published = alpaca_eval(model["model"], ours(model)[0]), model["leaderboard"]
        figures = (found.win_rate, found.standard_error, found.discrete_win_rate)
        expected = [published[name] / 100 for name in ("win_rate", "standard_error", "discrete_win_rate")]
        assert figures == pytest.approx(expected, abs=1e-8), model["model"]
        assert found.n == published["n_total"]


def planted(seed, prompts=400, strength=0.0):
    """A judge that prefers the longer answer, of two models whose lengths overlap; strength is the model's own."""
    rng = np.random.default_rng(seed)
    longer = rng.normal(0.8, 1.0, prompts)  # the model writes longer on average
    logit = strength + 2.5 * np.tanh(longer / longer.std(ddof=1))
    return (rng.uniform(size=prompts) < 1 / (1 + np.exp(-logit))).astype(float), -100 * longer


def test_a_judge_that_prefers_the_longer_answer_is_even_at_equal_lengths():
    preferences, deltas = planted(0)
    found = length_controlled(preferences, deltas)
    assert preferences.mean() > 0.65
    assert found.rate.low < 0.5 < found.rate.high
    assert found.rate.high - found.rate.low < 0.15


def test_models_that_are_nearly_even_have_an_interval():
    """The penalty that is chosen takes both terms away, as in alpaca-eval; other prompts would give another rate."""
    rng = np.random.default_rng(0)
    found = length_controlled(np.repeat([1.0, 0.0], [156, 144]), rng.normal(0, 300, 300))
    assert (found.rate.mean, found.weights) == (0.5, {"length": 0.0, "model": 0.0})
    assert found.rate.low < 0.5 < found.rate.high
    assert found.rate.high - found.rate.low == pytest.approx(2 * 1.96 * math.sqrt(0.52 * 0.48 / 300), rel=0.15)


def test_the_same_answers_are_even_by_construction():
    found = length_controlled(np.full(20, 0.5), np.zeros(20))
    assert found.rate == Interval(0.5, 0.5, 0.5, 20)
    assert found.weights == {"length": 0.0, "model": 0.0}
    equal = length_controlled(np.array([1.0] * 15 + [0.0] * 5), np.zeros(20))  # of one length, and one is better
    assert equal.rate.mean == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("wins", [0, 1, 3])
def test_a_model_that_loses_hardly_wins_at_equal_lengths_and_the_mirror_image_does(wins):
    """Rows of one label alone give liblinear the wrong sign."""
    deltas = np.random.default_rng(wins).normal(0, 300, 60)
    lost = np.array([1.0] * wins + [0.0] * (60 - wins))
    found, mirrored = length_controlled(lost, deltas), length_controlled(1 - lost, -deltas)
    assert found.rate.mean == pytest.approx(wins / 60, abs=0.06)
    assert mirrored.rate.mean == pytest.approx(1 - wins / 60, abs=0.06)
    assert found.rate.low < wins / 60 + 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs difficulties and gamed rows"):
        length_controlled(np.ones(9), np.ones(9), np.ones(9))
    with pytest.raises(ValueError, match="at least 5 preferences, got 1"):
        length_controlled(np.array([1.0, math.nan]), np.zeros(2))


def test_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def no_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    preferences, deltas = planted(0, 50)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        length_controlled(preferences, deltas)


def test_the_file_of_gamed_rows(tmp_path):
    file = tmp_path / "df_gamed.csv"
    header = "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    file.write_text(
        header + "concise,0.25,0,1.5,-2.0,False\nverbose,0.75,0,-1.5,-2.0,False\nconcise,0.5,7,0,1,False\n"
    )
    gamed, difficulty = read_gamed(str(file))
    assert gamed.preferences.tolist() == [0.25, 0.75, 0.5]
    assert gamed.deltas.tolist() == [1.5, -1.5, 0.0]
    assert difficulty == {0: -2.0, 7: 1.0}
    assert not is_published(str(file))
    for text, said in (
        ("index,preference\n1,2\n", "no column instruction_difficulty, std_delta_len"),
        (header + "concise,x,0,1,2,False\n", "row 1: preference is 'x', not a number"),
        (header, "no rows"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            read_gamed(str(file))
    with pytest.raises(MissingFileError, match="download df_gamed"):
        read_gamed(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ({"penalty": "l2", "l1_ratios": None}, {"penalty": "l1"}),  # 1.5 to 1.7
        (
            {"penalty": "deprecated", "l1_ratios": "warn", "use_legacy_attributes": "warn"},
            {"l1_ratios": (1.0,), "use_legacy_attributes": False},
        ),
        ({"l1_ratios": (0.0,), "use_legacy_attributes": False}, {"l1_ratios": (1.0,)}),  # 1.10
    ],
)
def test_each_scikit_learn_is_told_of_the_penalty_in_its_words(defaults, words):
    parameters = {name: Parameter(name, Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()}
    assert _lasso(parameters) == words


def test_lengths_that_tell_all_wins_apart_determine_no_rate(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 9)
    deltas = np.linspace(-300.0, 300.0, 60)
    assert not length_controlled((deltas > 50).astype(float), deltas).determined
    assert not length_controlled(np.ones(60), deltas).determined
