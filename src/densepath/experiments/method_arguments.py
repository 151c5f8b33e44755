"""Keys of a method in an experiment's recipe. No torch: `--help` reads this file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from densepath.errors import ConfigError
from densepath.pipeline.config import RunArguments
from densepath.pipeline.options import check_at_least, check_choice, option


@dataclass
class MethodArguments(RunArguments):
    """Those of `densepath run`, and what the baselines need beyond them."""

    budget: str = option(
        "samples",
        "What continued SFT has in common with DPR: samples, flops or seconds; the latter two are those of the method "
        "in budget_of.",
    )
    budget_of: str = option("dpr", "Method of the recipe whose FLOPs or seconds are matched.")
    alpha: float = option(1.0, "Strength of contrastive decoding and of weight extrapolation.")
    iterations: int = option(1, "Rounds of SPIN and GSIL: the opponent of a round is the policy of the round before.")
    self_play_beta: float = option(0.1, "Factor on the log-ratio in the losses of SPIN (lambda) and GSIL (beta).")
    gsil_loss: str = option("logistic", "Surrogate of GSIL's density ratio.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("budget", self.budget, ("samples", "flops", "seconds"))
        check_at_least("iterations", self.iterations, 1)
        for name in ("alpha", "self_play_beta"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be a number")
        if not self.self_play_beta > 0:
            raise ConfigError(f"self_play_beta={self.self_play_beta} must be above 0")
