"""Contrastive decoding: `softmax((1 + alpha) log pi_SFT - alpha log pi_ref)`, token by token, nothing trained.

At `alpha = 1 / beta` it is DPR's optimum where each token is rewarded on its own (method section 4). Each token takes
two forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.options import check_finite, option
from densepath.config.run import RunArguments
from densepath.methods import Method, Policy, Stage
from densepath.models.sampling import Contrast, ContrastKind


@dataclass
class AlphaArguments(RunArguments):
    """What goes beyond SFT by the strength `alpha`."""

    alpha: float = option(1.0, "Strength of contrastive decoding and of weight extrapolation.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("alpha", self.alpha)


def _policy(stage: Stage) -> Policy:
    reference = stage.sft.reference(stage.arguments.reference)
    return Policy(str(stage.sft.model), Contrast(reference, ContrastKind.CONTRASTIVE, stage.arguments.alpha))


METHOD = Method(
    "contrastive decoding", control=True, policy=_policy, arguments=AlphaArguments, needs_reference=True, decoders=2
)
