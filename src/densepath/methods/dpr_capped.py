"""Capped DPR: the reward of an answer is `alpha min(0, R(y) - kappa)`, so that nothing is gained above the cap.

DPR with `dpr_sequence_cap: 0` and `dpr_reward_scale: 2` unless the recipe says otherwise. Its optimum is
`pi_SFT min(1, e^(alpha (R - kappa) / beta))`: no event grows by more than one over the mean of that minimum, where the
plain reward has no bound (docs/theory.md, statement 11). It costs what DPR costs.
"""

from __future__ import annotations

from dataclasses import replace

from densepath.methods import Method, Outcome, Stage, dpr

CAP = {"dpr_sequence_cap": 0.0, "dpr_reward_scale": 2.0}
"""kappa, nats, and alpha: the value that gained without harm in every regime."""


def train(stage: Stage) -> Outcome:
    """DPR with the capped reward; leaves `model` in the stage's folder."""
    return dpr.train(replace(stage, others={**CAP, **stage.others}))


METHOD = Method("capped DPR", control=False, train=train, needs_reference=True, stage="DPR")
