"""The clock of a step: each moment counts once, to the innermost phase; a trainer's phases add up to its steps."""

from __future__ import annotations

import time

import pytest
from tests.trainers.test_dpr import trainer_of

from densepath.report.console import parts_text
from densepath.report.html import page_html
from densepath.report.profile import profile_page, profile_parts
from densepath.trainers import step_clock
from densepath.trainers.step_clock import PHASES, StepClock


class Made:
    """A trainer whose methods take as many seconds as `took` says, beside those that they call."""

    took = {  # noqa: RUF012 - read alone
        **{"training_step": 8.0, "_generate_and_score_completions": 1.0, "_generate_single_turn": 4.0},
        **{"_calculate_rewards": 2.0, "_with_policy_logprobs": 0.5, "_clip_grad_norm": 0.25, "_get_grad_norm": 0.125},
    }
    inside = {  # noqa: RUF012 - read alone
        "training_step": ["_generate_and_score_completions"],
        "_generate_and_score_completions": ["_generate_single_turn", "_calculate_rewards", "_with_policy_logprobs"],
    }

    def __init__(self, clock) -> None:
        self.now = clock
        for name in self.took:
            setattr(self, name, lambda name=name: self.run(name))

    def add_callback(self, callback) -> None:
        self.callback = callback

    def run(self, name):
        for called in self.inside.get(name, []):
            getattr(self, called)()
        self.now[0] += self.took[name]
        return [[1, 2, 3], [4]], None

    def step(self) -> None:
        given = None, None, None
        self.callback.on_step_begin(*given)
        for name in ("training_step", "training_step", "_clip_grad_norm", "_get_grad_norm"):
            getattr(self, name)()
        self.callback.on_pre_optimizer_step(*given)
        self.now[0] += 16
        self.callback.on_optimizer_step(*given)
        self.now[0] += 32
        self.callback.on_step_end(*given)


def test_each_moment_counts_to_the_innermost_phase(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_clock.time, "process_time", lambda: now[0])
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: 2 * now[0])
    trainer = Made(now)
    clock = StepClock(trainer)
    trainer.step()
    assert clock.profile(0.0) is None  # the first one is not counted
    now[0] += 100  # between two steps
    trainer.step()
    profile = clock.profile(2.0**30)
    seconds = {each.phase: each.cpu_seconds for each in profile.phases}
    assert seconds == {"sample": 8.0, "score": 5.0, "train": 16.0, "update": 16.375, "other": 34.0}
    assert [each.wall_seconds for each in profile.phases] == [2 * each for each in seconds.values()]
    assert sum(each.share for each in profile.phases) == pytest.approx(1)
    assert (profile.steps, profile.tokens, profile.cpu_seconds) == (1, 8, 79.375)
    assert profile.tokens_per_cpu_second == pytest.approx(8 / 79.375)


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])
def test_the_phases_of_a_trainer_add_up_to_its_steps(tmp_path, make_model, tokenizer, prompts, estimator):
    trainer = trainer_of(
        tmp_path, make_model, tokenizer, prompts, max_steps=3, estimator=estimator, gradient_accumulation_steps=2
    )
    clock, begun = StepClock(trainer), time.process_time()
    trainer.train()
    spent = time.process_time() - begun
    profile = clock.profile(1.0)
    assert [each.phase for each in profile.phases] == list(PHASES)
    assert profile.steps == 2
    assert profile.tokens > 0
    assert all(each.cpu_seconds > 0 for each in profile.phases)
    assert 0 < sum(seconds for step in clock.steps for seconds, _ in step.values()) < spent
    text = parts_text(profile_parts(profile))
    assert text is not None
    assert "sample" in page_html(profile_page(profile, (("model", "x"),), "out"))
