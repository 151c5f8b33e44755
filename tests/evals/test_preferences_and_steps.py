"""Credits, steps in tokens, and every figure against loops over rows, steps and tokens."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tiny_tokenizer
from tests.tokenizer_kinds import TURN, tokenizer_of
from trl.data_utils import maybe_extract_prompt

from densepath.data.encode import Encoded, encode_pair
from densepath.errors import DataError
from densepath.evals import auroc
from densepath.evals.altered_numbers import AlteredAnswer, altered_figures, changes
from densepath.evals.first_error import SteppedSolution, encode_steps, first_error_figures, step_tokens
from densepath.evals.preferences import (
    PreferencePair,
    check_preference,
    explicit_prompt,
    pair_credits,
    preference_figures,
)
from densepath.evals.signals import Aggregation, Piece, aggregate, piece_measures
from densepath.stats import bootstrap

TOKENIZER = tiny_tokenizer()
EOS = [TOKENIZER.eos_token_id]
FOLD = {"sum": sum, "mean": lambda values: sum(values) / len(values), "min": min}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Intervals are not looked at here."""
    monkeypatch.setattr(auroc, "AUROC_RESAMPLES", 9)
    full = bootstrap.bootstrap
    monkeypatch.setattr(bootstrap, "bootstrap", lambda *given, **named: full(*given, **{**named, "resamples": 9}))


def signals_of(lengths, seed=0, names=("reward", "sft_logprob")):
    rng = np.random.default_rng(seed)
    # A coarse grid, so that there are ties.
    return {name: [rng.integers(-3, 3, size) / 2 for size in lengths] for name in names}


def values_of(figure):
    return {measure.name: measure.value.mean for measure in figure.measures}


# --- measures ----------------------------------------------------------------------------------------------------


def test_measures_of_pieces_by_hand():
    signals = {"reward": [np.array([1.0, -3.0, 0.5]), np.array([2.0])]}
    found = piece_measures(signals, [Piece(0, 0, 3), Piece(0, 1, 2), Piece(1, 0, 1)])
    assert {name: values.tolist() for name, values in found.items()} == {
        "reward/sum": [-1.5, -3.0, 2.0],
        "reward/mean": [-0.5, -3.0, 2.0],
        "reward/min": [-3.0, -3.0, 2.0],
        "shorter": [-3.0, -1.0, -1.0],
        "longer": [3.0, 1.0, 1.0],
        "random": [0.0, 0.0, 0.0],
    }


def test_a_tie_counts_half_and_is_counted():
    assert pair_credits(np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])).tolist() == [1.0, 0.5, 0.0]


# --- preferences -------------------------------------------------------------------------------------------------


def encoded(length: int) -> Encoded:
    return Encoded((1,), tuple(range(length)))


def test_accuracy_by_a_loop_over_pairs():
    rng = np.random.default_rng(1)
    lengths = [(int(a), int(b)) for a, b in rng.integers(1, 5, (40, 2))]
    pairs = [
        PreferencePair("even" if i % 2 == 0 else "odd", (encoded(a), encoded(b))) for i, (a, b) in enumerate(lengths)
    ]
    signals = signals_of([length for pair in lengths for length in pair])
    (figure,) = preference_figures(pairs, signals, aggregation="min", seed=0)
    scores = {
        f"{name}/{how}": lambda i, name=name, how=how: FOLD[how](signals[name][i].tolist())
        for name, how in itertools.product(signals, FOLD)
    }
    flat = [length for pair in lengths for length in pair]
    scores |= {"shorter": lambda i: -flat[i], "longer": lambda i: flat[i], "random": lambda i: 0}
    found = {measure.name: measure for measure in figure.measures}
    assert list(found) == list(scores)
    for name, score in scores.items():
        verdicts = [(score(2 * i), score(2 * i + 1)) for i in range(40)]
        credits = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in verdicts]
        assert found[name].value.mean == pytest.approx(sum(credits) / 40)
        assert found[name].ties == credits.count(0.5)
        assert found[name].groups["category"]["odd"].mean == pytest.approx(sum(credits[1::2]) / 20)
        longer = [credit for credit, (a, b) in zip(credits, lengths, strict=True) if a > b]
        assert found[name].groups["length"]["chosen longer"].mean == pytest.approx(sum(longer) / len(longer))
    assert found["random"].value.mean == 0.5
    assert {c.against for c in figure.comparisons} == set(found) - {"reward/min"}
    for comparison in figure.comparisons:
        difference = found["reward/min"].value.mean - found[comparison.against].value.mean
        assert comparison.difference.mean == pytest.approx(difference)


# --- steps in tokens ---------------------------------------------------------------------------------------------

words = st.lists(
    st.sampled_from(["the answer is", " 3", "cat, dog", "é", "日本", "x\n\ny", "= 12"]), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=80)
@given(words, st.sampled_from(["\n", "\n\n", " ", "; "]))
def test_steps_share_out_all_tokens_but_eos_in_order(steps, separator):
    ids = encode_pair("(", separator.join(steps), TOKENIZER).completion_ids
    found = step_tokens(ids, steps, TOKENIZER, EOS)
    if isinstance(found, str):  # a merge over the border; seen in the test below
        assert "share a token" in found
        return
    assert [a for a, _ in found][1:] == [b for _, b in found][:-1]
    assert found[-1][1] == len(ids) - 1
    for step, (start, end) in zip(steps, found, strict=True):
        text = TOKENIZER.decode(ids[start:end])
        assert step.strip() in text
        assert text.strip().strip(";").strip() == step.strip()  # nothing of a neighbour


def test_a_separator_belongs_to_the_step_before_it():
    steps = ["the answer is", "3"]
    ids = encode_pair("(", "\n\n".join(steps), TOKENIZER).completion_ids
    (first, second) = step_tokens(ids, steps, TOKENIZER, EOS)
    assert TOKENIZER.decode(ids[first[0] : first[1]]) == "the answer is\n\n"
    assert TOKENIZER.decode(ids[second[0] : second[1]]) == "3"


@pytest.mark.parametrize("template", ["last", "twice", "chatml", "stripped"])
def test_what_the_template_puts_around_the_answer_belongs_to_no_step(template):
    """Phi 3 ends a turn before EOS, Qwen 3 thinks nothing before the answer."""
    tokenizer = tokenizer_of("byte level", template)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN)]
    steps = ["two plus three", "it is five"]
    row = {"prompt": [{"role": "user", "content": "Add."}], "steps": steps, "first_error": 1}
    solution = encode_steps(row, tokenizer, "\n", ends)
    ids = solution.completions[0].completion_ids
    assert [tokenizer.decode(ids[start:end]) for start, end in solution.steps] == ["two plus three\n", "it is five"]
    # A reward of the answer's own tokens that is right, and of what stands around it that is not.
    (first, _), (start, end) = solution.steps
    values = np.array([-1.0 if start <= place < end else 1.0 if first <= place < end else -9.0
                       for place in range(len(ids))])  # fmt: skip
    figures = {f.name: f for f in first_error_figures([solution], {"reward": [values]}, aggregation="mean", seed=0)}
    assert values_of(figures["auroc_token"])["reward"] == 1.0


def test_steps_that_do_not_tokenise_apart_are_named():
    ids = encode_pair("(", " words", TOKENIZER).completion_ids
    assert len(ids) == 2  # one token and EOS
    shared = "steps 0 and 1 share a token; choose another step_separator"
    assert step_tokens(ids, [" wor", "ds"], TOKENIZER, EOS) == shared
    row = {"prompt": "x", "steps": [" wor", "ds", "  "], "first_error": 0}
    assert "share a token" in encode_steps(row, TOKENIZER, "", EOS)
    assert encode_steps({**row, "steps": ["3", " "]}, TOKENIZER, "\n", EOS) == "step 1 is empty"
    assert encode_steps({**row, "steps": ["", " "]}, TOKENIZER, "\n", EOS) == "every step is empty"
    lossy = tiny_tokenizer(byte_level=False)
    assert "step 0 is not in the tokenised text" in encode_steps({**row, "steps": ["zebra"]}, lossy, "\n", EOS)


# --- first errors ------------------------------------------------------------------------------------------------


def solutions_of(seed=2, n=30):
    rng = np.random.default_rng(seed)
    found = []
    for index in range(n):
        sizes = rng.integers(1, 4, int(rng.integers(1, 5))).tolist()
        ends = list(itertools.accumulate(sizes))
        steps = tuple(zip([0, *ends[:-1]], ends, strict=True))
        error = None if index % 3 == 0 else int(rng.integers(len(steps)))
        found.append(SteppedSolution("all", (encoded(ends[-1] + 1),), steps, error))
    return found


def pairs_won(bad, good):
    return sum(1.0 if b < g else 0.5 if b == g else 0.0 for b in bad for g in good) / (len(bad) * len(good))


def test_first_error_figures_by_loops():
    solutions = solutions_of()
    signals = signals_of([s.steps[-1][1] + 1 for s in solutions], seed=3)
    figures = {f.name: f for f in first_error_figures(solutions, signals, aggregation="mean", seed=0)}
    assert list(figures) == ["lowest_step", "auroc_step", "auroc_token", "auroc_row"]

    for how, fold in FOLD.items():
        credits, bad, good, bad_rows, good_rows = [], [], [], [], []
        for solution, tokens in zip(solutions, signals["reward"], strict=True):
            scores = [fold(tokens[a:b].tolist()) for a, b in solution.steps]
            (good_rows if solution.first_error is None else bad_rows).append(min(scores))
            if solution.first_error is None:
                good += scores
                continue
            good += scores[: solution.first_error]
            bad.append(scores[solution.first_error])
            if len(scores) > 1:
                lowest = [i for i, score in enumerate(scores) if score == min(scores)]
                credits.append(1 / len(lowest) if solution.first_error in lowest else 0.0)
        name = f"reward/{how}"
        assert values_of(figures["lowest_step"])[name] == pytest.approx(sum(credits) / len(credits))
        assert values_of(figures["auroc_step"])[name] == pytest.approx(pairs_won(bad, good))
        assert values_of(figures["auroc_row"])[name] == pytest.approx(pairs_won(bad_rows, good_rows))

    bad, good = [], []
    for solution, tokens in zip(solutions, signals["sft_logprob"], strict=True):
        last = len(solution.steps) - 1 if solution.first_error is None else solution.first_error
        for index, (a, b) in enumerate(solution.steps[: last + 1]):
            (bad if index == solution.first_error else good).extend(tokens[a:b].tolist())
    assert values_of(figures["auroc_token"])["sft_logprob"] == pytest.approx(pairs_won(bad, good))

    chance = [1 / len(s.steps) for s in solutions if s.first_error is not None and len(s.steps) > 1]
    assert (
        figures["lowest_step"].chance
        == values_of(figures["lowest_step"])["random"]
        == pytest.approx(sum(chance) / len(chance))
    )
    assert values_of(figures["auroc_step"])["random"] == 0.5
    assert values_of(figures["auroc_step"])["earlier"] == pytest.approx(1 - values_of(figures["auroc_step"])["later"])


def test_a_planted_fall_is_found_and_a_planted_rise_is_not():
    solutions = solutions_of(seed=4)
    for fall, expected in ((-9.0, 1.0), (9.0, 0.0)):
        signals = signals_of([s.steps[-1][1] + 1 for s in solutions], seed=5)
        for solution, tokens in zip(solutions, signals["reward"], strict=True):
            if solution.first_error is not None:
                start, end = solution.steps[solution.first_error]
                tokens[start:end] += fall
        figures = {f.name: f for f in first_error_figures(solutions, signals, aggregation="mean", seed=0)}
        assert values_of(figures["lowest_step"])["reward/mean"] == expected
        assert values_of(figures["auroc_step"])["reward/mean"] == expected
        assert values_of(figures["auroc_token"])["reward"] == expected


def test_figures_without_both_kinds_are_left_out():
    wrong = [s for s in solutions_of() if s.first_error is not None]
    signals = signals_of([s.steps[-1][1] + 1 for s in wrong])
    names = [f.name for f in first_error_figures(wrong, signals, aggregation="mean", seed=0)]
    assert names == ["lowest_step", "auroc_step", "auroc_token"]
    right = [s for s in solutions_of() if s.first_error is None]
    with pytest.raises(DataError, match="no row has an error to find: first_error is -1 everywhere"):
        first_error_figures(right, signals_of([s.steps[-1][1] + 1 for s in right]), aggregation="mean", seed=0)


# --- altered numbers ---------------------------------------------------------------------------------------------


def test_altered_figures_by_loops():
    rng = np.random.default_rng(6)
    lengths = rng.integers(3, 8, 20).tolist()
    answers = [
        AlteredAnswer("all", (encoded(n), encoded(n)), int(rng.integers(n - 1)), "new" if i % 2 else "copied", None)
        for i, n in enumerate(lengths)
    ]
    signals = signals_of([n for n in lengths for _ in range(2)], seed=7)
    for values in signals.values():  # tokens before the altered one do not see it
        for index, answer in enumerate(answers):
            values[2 * index + 1][: answer.at] = values[2 * index][: answer.at]
    figures = {f.name: f for f in altered_figures(answers, signals, aggregation="sum", seed=0)}
    for name in ("reward", "sft_logprob"):
        lowest, rank = [], []
        for index, answer in enumerate(answers):
            tokens = signals[name][2 * index + 1].tolist()
            mine = tokens.pop(answer.at)
            lowest.append(0.0 if min(tokens) < mine else 1 / (1 + tokens.count(mine)))
            rank.append(sum(1.0 if t > mine else 0.5 if t == mine else 0.0 for t in tokens) / len(tokens))
        assert values_of(figures["lowest_token"])[name] == pytest.approx(sum(lowest) / 20)
        assert values_of(figures["rank_of_token"])[name] == pytest.approx(sum(rank) / 20)
    assert {measure.ties for measure in figures["rank_of_token"].measures} == {None}
    assert figures["lowest_token"].chance == pytest.approx(sum(1 / n for n in lengths) / 20)
    sums = [float(values.sum()) for values in signals["reward"]]
    credits = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(sums[0::2], sums[1::2], strict=True)]
    assert values_of(figures["accuracy"])["reward/sum"] == pytest.approx(sum(credits) / 20)
    assert values_of(figures["accuracy"])["shorter"] == 0.5  # twins are equally long

    moved = changes(answers, signals)["reward"]
    at, after = [], []
    for index, answer in enumerate(answers):
        original, twin = signals["reward"][2 * index].tolist(), signals["reward"][2 * index + 1].tolist()
        at.append(twin[answer.at] - original[answer.at])
        later = [b - a for a, b in zip(original, twin, strict=True)][answer.at + 1 :]
        after.append(sum(later) / len(later))
    assert moved.at.mean == pytest.approx(sum(at) / 20)
    assert moved.after.mean == pytest.approx(sum(after) / 20)


@pytest.mark.parametrize("how", list(Aggregation))
def test_aggregation_by_hand(how):
    expected = {"sum": -1.0, "mean": -0.5, "min": -3.0}[how.value]
    assert aggregate(np.array([2.0, -3.0]), how) == expected
    assert not math.isnan(expected)


TURNS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


@given(TURNS, TURNS, st.sampled_from([None, "a question", [{"role": "user", "content": "a"}]]))
def test_a_shared_prompt_is_what_trl_takes_for_one(chosen, rejected, prompt):
    row = {
        name: [{"role": "assistant" if k else "user", "content": word} for k, word in enumerate(words)]
        for name, words in (("chosen", chosen), ("rejected", rejected))
    } | ({} if prompt is None else {"prompt": prompt})
    assert explicit_prompt(row) == {**row, **maybe_extract_prompt(row)}


def test_keys_that_arrow_fills_with_nulls_part_no_prompt():
    """One answer has a key that the others lack, and only one of the two columns was written with it."""
    asked, filled = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi", "name": None}
    answers = {"role": "assistant", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}
    row = {"chosen": [filled, answers[0]], "rejected": [asked, answers[1]]}
    check_preference(row)
    found = explicit_prompt(row)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([filled], [answers[0]], [answers[1]])
