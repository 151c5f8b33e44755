"""Purified SFT whose bands are drawn at random: the control that shows whether it is the reward that purifies."""

from __future__ import annotations

from dataclasses import replace

from densepath.methods import Method, Outcome, Stage, purified_sft


def train(stage: Stage) -> Outcome:
    """All that purified SFT does, from bands that say nothing."""
    return purified_sft.train(replace(stage, arguments=replace(stage.arguments, purify_score="random")))


METHOD: Method = replace(purified_sft.METHOD, label="purified, random bands", control=True, train=train)
