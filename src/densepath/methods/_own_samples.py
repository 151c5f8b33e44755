"""SFT on the SFT model's own answers: those that something lets through, trained on as demonstrations are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset

from densepath.core.mixture import systematic_draws
from densepath.data.rows import Row
from densepath.evals.generation import Completion, Decoding, generate
from densepath.io import remembered, write_json_atomic
from densepath.methods import Outcome, Stage
from densepath.methods._stage import FORWARD_FLOPS, free_models
from densepath.methods.continued_sft import go_on
from densepath.models.load import load_frozen
from densepath.models.quantized import parameter_count
from densepath.progress import StageProgress
from densepath.records.arm import Budget
from densepath.records.codec import from_json, to_json


def own_samples(stage: Stage, rows: Sequence[Row], per_prompt: int) -> list[Completion]:
    """Answers of the SFT model at temperature 1, sampled once and kept in `samples.json`."""

    def compute() -> list[Any]:
        arguments = stage.arguments
        decoding = Decoding(1.0, arguments.max_completion_length, per_prompt, arguments.seed)
        title = f"{stage.title}, sampling"
        with StageProgress(stage.console, title, len(rows) * per_prompt, "sample") as progress:
            found = generate(
                load_frozen(arguments, stage.sft.model),
                stage.sft.tokenizer(),
                rows,
                decoding,
                on_progress=lambda done, _: progress.update(done),
            )
        return [to_json(each) for each in found]

    return [from_json(Completion, each) for each in remembered(stage.folder / "samples.json", compute)]


def train_on_own(
    stage: Stage, samples: Sequence[Completion], keep: Callable[[Completion, int], bool], passes: int
) -> Outcome:
    """SFT goes on with the answers that are kept, on as many as DPR samples; without any, nothing is trained.

    Args:
        stage: what it reads, and where it writes.
        samples: of the SFT model.
        keep: (answer, its place) -> whether it is trained on.
        passes: forward passes that each answer took, its sampling included.
    """
    kept = [each for place, each in enumerate(samples) if keep(each, place)]
    write_json_atomic(stage.folder / "kept.json", {"samples": len(samples), "kept": len(kept)})
    outcome = Outcome(Budget(), 0)
    if kept:
        steps = max(1, round(stage.samples / stage.demonstrations_per_step))
        generator = torch.Generator().manual_seed(stage.arguments.seed)
        draws = systematic_draws(torch.ones(len(kept)), steps * stage.demonstrations_per_step, generator)
        outcome = go_on(stage, steps, Dataset.from_list([_columns(each) for each in kept]).select(draws.tolist()))
    free_models()
    model = load_frozen(stage.arguments, stage.sft.model)
    flops = FORWARD_FLOPS * passes * _tokens(samples) * parameter_count(model)
    spent = outcome.budget
    budget = Budget(len(samples), spent.demonstrations, spent.tokens, spent.flops + flops)
    return Outcome(budget, outcome.steps)


def _columns(answer: Completion) -> dict[str, Any]:
    prompt, completion = list(answer.prompt_ids), list(answer.completion_ids)
    return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}


def _tokens(samples: Sequence[Completion]) -> int:
    """Tokens of one forward pass; a prompt that several answers share counts once."""
    prompts = {each.row: len(each.prompt_ids) for each in samples}
    return sum(prompts.values()) + sum(len(each.completion_ids) for each in samples)
