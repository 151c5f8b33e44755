"""GSIL (Xiao et al. 2024): a density ratio between demonstrations and own completions, with the surrogate `gsil_loss`.

Equation and surrogates: `core.imitation`. It costs what SPIN costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.options import option
from densepath.methods import Method, Outcome, Stage
from densepath.methods._self_play import SelfPlayArguments, self_play


@dataclass
class GSILArguments(SelfPlayArguments):
    """What GSIL takes beyond SPIN."""

    gsil_loss: str = option("logistic", "Surrogate of GSIL's density ratio.")


def train(stage: Stage) -> Outcome:
    """`iterations` rounds."""
    return self_play(stage, stage.arguments.gsil_loss)


METHOD = Method("GSIL", control=True, train=train, arguments=GSILArguments, stage="self-play")
