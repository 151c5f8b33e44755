"""Subtractive decoding: `max(pi_SFT(a|s) - c exp(-R_<t) pi_ref(a|s), eps pi_SFT(a|s))`, nothing trained.

`R_<t = log pi_SFT - log pi_ref` of the answer so far. It samples what SFT added to the reference,
`(pi_SFT - c pi_ref) / (1 - c)`, and no event becomes more than `1 / (1 - c)` times as likely as under SFT: it cannot
collapse as contrastive decoding does. Each token takes two forward passes. Source: docs/theory.md, statement 10.
"""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.options import option
from densepath.config.run import RunArguments
from densepath.errors import ConfigError
from densepath.methods import Method, Policy, Stage
from densepath.models.sampling import Contrast, ContrastKind


@dataclass
class SubtractiveArguments(RunArguments):
    """How much of the reference is taken away."""

    c: float = option(0.8, "Share of the reference that subtractive decoding takes away, in [0, 1]; 0 is SFT.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.c <= 1:
            raise ConfigError(f"c={self.c} must lie in [0, 1]")


def _policy(stage: Stage) -> Policy:
    reference = stage.sft.reference(stage.arguments.reference)
    return Policy(str(stage.sft.model), Contrast(reference, ContrastKind.SUBTRACTIVE, stage.arguments.c))


METHOD = Method(
    "subtractive decoding",
    control=True,
    policy=_policy,
    arguments=SubtractiveArguments,
    needs_reference=True,
    decoders=2,
)
