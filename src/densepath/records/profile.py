"""Where the time of a training step goes: what `densepath dpr --profile` writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseTime:
    """One phase of a step.

    Attributes:
        phase: `sample`, `score` (the reward: frozen models and reward functions), `train` (forward and backward),
            `update` (gradient norm and optimizer), or `other` (all that is between them).
        cpu_seconds: of this process in a step, the median over the steps.
        wall_seconds: likewise, by the clock.
        share: of the processor seconds of all steps, in [0, 1].
    """

    phase: str
    cpu_seconds: float
    wall_seconds: float
    share: float


@dataclass(frozen=True)
class StepProfile:
    """The steps of a training by phase; the first one, in which memory is taken and passes are tried, is left out.

    Attributes:
        steps: that were counted.
        tokens: completion tokens of a step of this process, mean over the steps.
        cpu_seconds: of a step, the median.
        wall_seconds: likewise, by the clock.
        tokens_per_cpu_second: completion tokens of all steps over their processor seconds.
        peak_bytes: most memory that this process had resident.
        phases: in the order of a step.
    """

    steps: int
    tokens: float
    cpu_seconds: float
    wall_seconds: float
    tokens_per_cpu_second: float
    peak_bytes: float
    phases: tuple[PhaseTime, ...]
