"""Arguments of an experiment and of the methods in its recipe. No torch: `--help` reads this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from densepath.config.options import check_finite, option
from densepath.config.run import RunArguments
from densepath.errors import ConfigError


@dataclass
class MethodArguments(RunArguments):
    """Those of `densepath run`, and what the baselines need beyond them."""

    budget: str = option(
        "samples",
        "What continued SFT has in common with DPR: samples, flops or seconds; the latter two are those of the method "
        "in budget_of.",
        choices=("samples", "flops", "seconds"),
    )
    budget_of: str = option("dpr", "Method of the recipe whose FLOPs or seconds are matched.")
    alpha: float = option(1.0, "Strength of contrastive decoding and of weight extrapolation.")
    iterations: int = option(
        1, "Rounds of SPIN and GSIL: the opponent of a round is the policy of the round before.", least=1
    )
    self_play_beta: float = option(0.1, "Factor on the log-ratio in the losses of SPIN (lambda) and GSIL (beta).")
    gsil_loss: str = option("logistic", "Surrogate of GSIL's density ratio.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "self_play_beta"):
            check_finite(name, getattr(self, name))
        if not self.self_play_beta > 0:
            raise ConfigError(f"self_play_beta={self.self_play_beta} must be above 0")


@dataclass
class ExperimentArguments(MethodArguments):
    """Arguments of `densepath experiment`: any key of `densepath run` holds for every cell."""

    output_dir: str = option("runs/experiment", "Folder of the grid. The same command goes on where it stopped.")
    seeds: list[int] = option([0, 1, 2], "Seeds; every method of every setting is run with each.")
    num_workers: int | None = option(
        None, "Cells run at once, each in a process of its own. None: as many as cores and memory allow.", least=1
    )
    settings: Mapping[str, Any] = option({}, "name -> keys of its cells, in the recipe.")
    methods: Mapping[str, Any] = option(
        {}, "name -> keys: method, label, control, tune, settings, and those of its cells."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds={self.seeds}: give each seed once, and at least one")
        for name in ("settings", "methods"):
            if not isinstance(getattr(self, name), dict) or not getattr(self, name):
                raise ConfigError(f"{name} is empty or no mapping; a recipe (--config) has to name them: see recipes/")
