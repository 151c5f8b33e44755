"""Seconds of each phase of a DPR step, from a clock around the trainer's own methods: it changes nothing."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback

from densepath.records.profile import PhaseTime, StepProfile

PHASES = ("sample", "score", "train", "update", "other")
_METHODS = {
    "_generate_and_score_completions": "other",
    "_generate_single_turn": "sample",
    "_calculate_rewards": "score",
    "_with_policy_logprobs": "score",
    "training_step": "train",
    "_clip_grad_norm": "update",
    "_get_grad_norm": "update",
}
"""Methods of the trainer, and the phase that their time counts to, less what other methods within them take."""


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Times a trainer's steps by phase; each moment counts to the innermost phase.

    Args:
        trainer: a `DPRTrainer`, whose methods it wraps.
    """

    def __init__(self, trainer: Any) -> None:
        self.steps: list[dict[str, tuple[float, float]]] = []
        self.tokens: list[int] = []
        self._open: list[str] = []
        self._spent: dict[str, list[float]] = {}
        self._since = (0.0, 0.0)
        self._sampled = 0
        trainer._generate_single_turn = self._counted(trainer._generate_single_turn)
        for name, phase in _METHODS.items():
            setattr(trainer, name, self._timed(getattr(trainer, name), phase))
        trainer.add_callback(self)

    def _timed(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._phase(phase):
                return method(*args, **kwargs)

        return timed

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A sampler whose tokens are counted."""

        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            found = method(*args, **kwargs)
            self._sampled += sum(map(len, found[0]))
            return found

        return counted

    @contextlib.contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        self._enter(phase)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, phase: str) -> None:
        self._count()
        self._open.append(phase)

    def _leave(self) -> None:
        self._count()
        self._open.pop()

    def _count(self) -> None:
        """Give the time since the last change to the phase that was open."""
        now = time.process_time(), time.perf_counter()
        if self._open:
            spent = self._spent.setdefault(self._open[-1], [0.0, 0.0])
            for place in (0, 1):
                spent[place] += now[place] - self._since[place]
        self._since = now

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a step; what no method below takes is `other`."""
        self._spent, self._open, self._sampled = {}, [], 0
        self._enter("other")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer's step begins."""
        self._enter("update")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It has ended."""
        self._leave()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the step."""
        self._leave()
        self.steps.append({phase: tuple(self._spent.get(phase, (0.0, 0.0))) for phase in PHASES})  # type: ignore[misc]
        self.tokens.append(self._sampled)

    def profile(self, peak_bytes: float) -> StepProfile | None:
        """Of all steps but the first; None where there is none."""
        steps, tokens = self.steps[1:], self.tokens[1:]
        if not steps:
            return None
        of_steps = [[sum(times[place] for times in step.values()) for step in steps] for place in (0, 1)]
        cpu = sum(of_steps[0])
        phases = []
        for phase in PHASES:
            seconds, wall = ([step[phase][place] for step in steps] for place in (0, 1))
            share = sum(seconds) / cpu if cpu else 0.0
            phases.append(PhaseTime(phase, statistics.median(seconds), statistics.median(wall), share))
        return StepProfile(
            steps=len(steps),
            tokens=statistics.fmean(tokens),
            cpu_seconds=statistics.median(of_steps[0]),
            wall_seconds=statistics.median(of_steps[1]),
            tokens_per_cpu_second=sum(tokens) / cpu if cpu else 0.0,
            peak_bytes=peak_bytes,
            phases=tuple(phases),
        )
