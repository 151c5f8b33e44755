"""Filtered SFT: the SFT model trained on those of its own answers whose reward is not negative, `R(y) >= 0`.

The optimum of the capped reward for `beta -> 0` without a policy gradient: `pi_SFT` conditioned on `R >= 0`, where no
event grows by more than one over its share (docs/method.md). It samples as many answers as DPR, scores them under the
reference, and is trained on as many demonstrations as continued SFT. Where no answer is kept, the SFT model is.
"""

from __future__ import annotations

import random

from densepath.data.training_rows import Rows, fitting_rows, longest_prompt
from densepath.errors import DataError
from densepath.io import remembered
from densepath.methods import Method, Outcome, Stage
from densepath.methods._own_samples import own_samples, train_on_own
from densepath.methods._stage import trained_or_sft
from densepath.models.load import load_frozen
from densepath.rewards.frozen import FrozenPolicy

PASSES = 2
"""Of each answer: sampled under the SFT model, scored under the reference."""


def train(stage: Stage) -> Outcome:
    """Sample, keep what the reward does not condemn, and train."""
    samples = own_samples(stage, _prompts(stage), stage.arguments.num_generations)
    path = stage.folder / "log_ratios.json"

    def compute() -> list[float]:
        reference = FrozenPolicy(load_frozen(stage.arguments, stage.sft.reference(stage.arguments.reference)))
        scores = reference.score([each.prompt_ids for each in samples], [each.completion_ids for each in samples])
        pairs = zip(samples, scores.logprobs, strict=True)
        return [sum(each.logprobs) - float(values.double().sum()) for each, values in pairs]

    log_ratios = remembered(path, compute)
    return train_on_own(stage, samples, lambda _, place: log_ratios[place] >= 0, PASSES)


def _prompts(stage: Stage) -> Rows:
    """Rows that are sampled from: each once before any is used again, in random order."""
    arguments, context = stage.arguments, stage.sft.context
    longest = longest_prompt(context, arguments.max_completion_length, arguments.max_prompt_length)
    rows = stage.sft.rows("rl" if arguments.rl_prompts is not None else "train")
    rows = fitting_rows(rows, stage.sft.tokenizer(), longest)
    if not rows:
        raise DataError("no prompt leaves room for an answer; raise max_prompt_length or lower max_completion_length")
    rng, count = random.Random(arguments.seed), -(-stage.samples // arguments.num_generations)
    found: Rows = []
    while len(found) < count:
        found += rng.sample(rows, len(rows))
    return found[:count]


METHOD = Method("filtered SFT", control=True, train=train, policy=trained_or_sft, needs_reference=True, stage="SFT")
