"""Rejection-sampling fine-tuning: the SFT model trained on its own answers that the verifier accepts.

`samples_per_prompt` answers at temperature 1 to each validation prompt, the only ones whose answers may be checked;
the accepted ones are trained on with as many demonstrations as continued SFT sees. It is what the verdicts that choose
among other methods could be used for instead (RFT, Yuan et al. 2023, arXiv 2308.01825; STaR, Zelikman et al. 2022).
Its own figures on validation are of prompts that it was trained on: those on the test prompts count.
"""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.options import option
from densepath.config.run import RunArguments
from densepath.data.training_rows import fitting_rows, longest_prompt
from densepath.errors import ConfigError
from densepath.evals.generation import Completion, checked
from densepath.evals.verifiers import get_verifier
from densepath.methods import Method, Outcome, Stage
from densepath.methods._own_samples import own_samples, train_on_own
from densepath.methods._stage import trained_or_sft

RIGHT = 0.5
"""Verdicts from here on count as right."""


@dataclass
class RejectionSamplingArguments(RunArguments):
    """How much is sampled."""

    samples_per_prompt: int = option(16, "Answers to each validation prompt that rejection sampling checks.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verifier is None:
            raise ConfigError("rejection sampling trains on what a verifier accepts; set verifier, or leave it out")


def train(stage: Stage) -> Outcome:
    """Sample, keep what is right, and train."""
    arguments, context = stage.arguments, stage.sft.context
    longest = longest_prompt(context, arguments.max_completion_length, None)
    rows = fitting_rows(stage.sft.rows("validation"), stage.sft.tokenizer(), longest)
    verifier = get_verifier(arguments.verifier)

    def accepted(answer: Completion, place: int) -> bool:
        (found,) = checked([answer], rows, verifier)
        return found.metric is not None and found.metric >= RIGHT

    return train_on_own(stage, own_samples(stage, rows, arguments.samples_per_prompt), accepted, passes=1)


METHOD = Method(
    "rejection sampling",
    control=True,
    train=train,
    policy=trained_or_sft,
    arguments=RejectionSamplingArguments,
    sees_validation=True,
    stage="SFT",
)
