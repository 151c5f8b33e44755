"""SPIN (Chen et al. 2024): rounds of demonstrations against completions of the policy of the round before.

`-log sigmoid(lambda [log pi/pi_opponent (demonstration) - log pi/pi_opponent (own)])`, `lambda` = `self_play_beta`
(`trainers.self_play`). A pair is sampled, scored under the opponent, and trained on twice.
"""

from __future__ import annotations

from densepath.methods import Method, Outcome, Stage
from densepath.methods._self_play import SelfPlayArguments, self_play
from densepath.trainers.self_play import SPIN


def train(stage: Stage) -> Outcome:
    """`iterations` rounds."""
    return self_play(stage, SPIN)


METHOD = Method("SPIN", control=True, train=train, arguments=SelfPlayArguments, stage="self-play")
