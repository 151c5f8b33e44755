"""Purified SFT whose bands are made of log pi_SFT: the control that shows whether the reference is needed."""

from __future__ import annotations

from dataclasses import replace

from densepath.methods import Method, Outcome, Stage, purified_sft


def train(stage: Stage) -> Outcome:
    """All that purified SFT does, from bands of how likely the SFT model finds each demonstration."""
    return purified_sft.train(replace(stage, arguments=replace(stage.arguments, purify_score="sft_logprob")))


METHOD: Method = replace(purified_sft.METHOD, label="purified, log π_SFT bands", control=True, train=train)
