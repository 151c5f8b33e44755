"""Dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629): each token's loss weighted by its own probability.

`-sg(p_t) log p_t`, TRL's `loss_type="dft"`, on as many demonstrations as DPR samples completions; it costs what
continued SFT costs.
"""

from __future__ import annotations

from densepath.methods import Method, Outcome, Stage
from densepath.methods.continued_sft import go_on


def train(stage: Stage) -> Outcome:
    """SFT goes on with the DFT loss."""
    return go_on(stage, max(1, round(stage.samples / stage.demonstrations_per_step)), loss_type="dft")


METHOD = Method("DFT", control=True, train=train, stage="SFT")
