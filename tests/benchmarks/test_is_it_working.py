"""The runs behind docs/is-it-working.md: what they say about early stopping is what the trainer does."""

from __future__ import annotations

import json

import pytest
from benchmarks.is_it_working import RUNS, exact_match, figure, stop_of, table, thresholds, train

GOOD, NOVEL = RUNS[:2]


def logs(*, kl, nll, truth):
    """Rows as a trainer logs them: every step of training, every fifth evaluated."""
    rows = []
    for step in range(len(kl)):
        if step > 0:
            rows.append({"step": step, "loss": 0.0, "reward": step / 10, "kl_sequence": kl[step], "entropy": 0.2})
        if step % 5 == 0:
            row = {"eval_nll": 1.0, "eval_nll_increase": nll[step // 5], "eval_reward": step / 10}
            row |= {"eval_kl_sequence": kl[step], "eval_rewards/exact_match/mean": truth[step // 5]}
            rows.append({"step": step, "eval_reward_corr/exact_match": 0.25, **row})
    return rows


CLEAN = logs(kl=[0.1] * 16, nll=[0.0, 0.1, 0.1, 0.1], truth=[0.4, 0.5, 0.5, 0.6])
FAR = logs(kl=[0.0] * 8 + [2.0] * 8, nll=[0.0, 0.1, 0.1, 0.1], truth=[0.4, 0.5, 0.3, 0.2])
AWAY = logs(kl=[0.1] * 16, nll=[0.0, 0.1, 0.15, 0.3], truth=[0.4, 0.5, 0.4, 0.1])


def test_where_a_run_would_have_stopped():
    assert stop_of(CLEAN) == (None, None, 15)
    assert stop_of(FAR) == (10, "kl_sequence", 5)  # the third log in a row above 1.5
    assert stop_of(AWAY) == (15, "eval_nll_increase", 10)


def test_tables():
    lines = table({"x": [FAR, AWAY]}).splitlines()
    # early stopping: .5 at step 5 and .4 at step 10; at the end .2 and .1
    assert lines[2] == "| x | 0.40 | 0.45 | 0.15 | 10, 15 | `eval_nll_increase`, `kl_sequence` | 0.25, 0.25 |"
    shown = thresholds({"x": [FAR]})
    # evaluations at 5, 10, 15: KL 0, 2, 2; truth .5, .3, .2 against .4
    assert "| `eval_kl_sequence` | 1.5 | 2 of 2 | 0 of 1 |" in shown


def test_figures_are_small(tmp_path):
    figure(GOOD, AWAY, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.png").stat().st_size < 60_000


def test_exact_match_needs_the_end():
    ids = [[6, 7, 1], [6, 7], [6, 0, 7, 1], [6, 8, 1]]  # "3 4 <eos>", cut off, with padding inside, wrong
    assert exact_match(ids, ["3 4"] * 4) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.slow
def test_the_trainer_stops_where_the_page_says(tmp_path):
    whole = train(NOVEL, tmp_path, seed=0, max_steps=15)
    step, metric, kept = stop_of(whole)
    assert (step, metric) == (5, "eval_nll_increase")
    stopped = train(NOVEL, tmp_path, seed=0, max_steps=15, early_stopping=True, save_strategy="steps", save_steps=5)
    assert [row["step"] for row in stopped if "loss" in row][-1] == step
    state = json.loads((tmp_path / NOVEL.name / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] is None
    assert kept == 0
