"""Continued SFT: the same loss on the same demonstrations for longer, with the compute that another method takes.

The control that a gain has to beat. FLOPs are 2 a parameter and token forward, 4 backward, over the tokens that were
really computed; a prompt that several completions share counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from densepath.config.options import option
from densepath.config.run import RunArguments
from densepath.data.encode import encode_demonstrations
from densepath.methods import Method, Outcome, Stage
from densepath.methods._stage import TRAIN_FLOPS, SFTRun, parameters_of, sft_config, tokens_trained
from densepath.models.load import load_trainable
from densepath.records.arm import Budget
from densepath.trainers.sft import save_model_atomic, sft_trainer
from densepath.trainers.trl_config import peft_config


@dataclass
class BudgetArguments(RunArguments):
    """How long SFT goes on."""

    budget: str = option(
        "samples",
        "What continued SFT has in common with DPR: samples, flops or seconds; the latter two are those of the method "
        "in budget_of.",
        choices=("samples", "flops", "seconds"),
    )
    budget_of: str = option("dpr", "Method of the recipe whose FLOPs or seconds are matched.")


def train(stage: Stage) -> Outcome:
    """SFT that goes on for `stage.matched` steps, or on as many demonstrations as DPR samples completions."""
    steps = stage.matched
    if steps is None:
        steps = max(1, round(stage.samples / stage.demonstrations_per_step))
    return go_on(stage, steps)


def go_on(stage: Stage, steps: int, dataset: Dataset | None = None, **changes: Any) -> Outcome:
    """SFT that goes on from the SFT model; leaves `model` in the stage's folder.

    Args:
        stage: what it reads, and where it writes.
        steps: optimizer steps.
        dataset: tokenised rows; the same demonstrations as SFT's if None.
        changes: further arguments of TRL's `SFTConfig`.
    """
    arguments = stage.arguments
    tokenizer = stage.sft.tokenizer()
    config = sft_config(
        arguments,
        stage.others,
        stage.folder,
        max_steps=steps,
        learning_rate=stage.continued_rate,
        warmup_steps=steps // 20,
        seed=arguments.seed + 1,  # another order of the demonstrations than SFT's
        **changes,
    )
    if dataset is None:
        dataset = encoded_demonstrations(stage.sft, tokenizer)
    model = load_trainable(arguments, stage.sft.model)
    trainer = sft_trainer(model, tokenizer, dataset, config, peft_config=peft_config(arguments, model))
    stage.train(trainer)
    save_model_atomic(trainer, tokenizer, stage.folder / "model", {"steps": steps})
    tokens = tokens_trained(stage.folder)
    seen = steps * config.train_batch_size * config.gradient_accumulation_steps
    flops = TRAIN_FLOPS * tokens * parameters_of(trainer)
    return Outcome(Budget(demonstrations=seen, tokens=tokens, flops=flops), steps)


def encoded_demonstrations(sft: SFTRun, tokenizer: Any) -> Dataset:
    """The training demonstrations, tokenised, cut as SFT cuts them."""
    limit = min(sft.arguments.max_length or sft.context, sft.context)
    source = str(sft.path / "data/train.jsonl")
    return encode_demonstrations(sft.rows("train"), tokenizer, limit, drop_overlong=True, source=source)[0]


METHOD = Method("continued SFT", control=True, train=train, arguments=BudgetArguments, matches=True, stage="SFT")
