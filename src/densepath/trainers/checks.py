"""What a DPR trainer refuses before its first step, each with the row or argument that is wrong."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from torch import nn

from densepath.data.context import check_context, room_for_prompts
from densepath.data.rows import template_columns
from densepath.errors import ConfigError, DataError, ModelError
from densepath.rewards.dense import RewardKind
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.refusals import check_optimization, check_token
from densepath.trainers.reward_functions import RewardFunctions

_TEMPLATE_TOKENS = 256
"""What a chat template may add to the bytes of a prompt, before its tokens are counted."""


def check_arguments(ref_model: Any, args: Any) -> None:
    """Refuse what is left of a GRPO script that does not fit here.

    Raises:
        ConfigError: arguments of another trainer, a reward function in the reference's place, or arguments with which
            training cannot begin.
        ModelError: no reference where one is needed.
    """
    if not isinstance(args, DPRConfig):
        raise ConfigError(
            f"args is a {type(args).__name__}: DPRTrainer takes a DPRConfig, which has the same arguments"
        )
    check_token(args)
    check_optimization(args)
    for each in ref_model if isinstance(ref_model, (list, tuple)) else [ref_model]:
        if callable(each) and not isinstance(each, (nn.Module, FrozenPolicy)):
            raise ConfigError(
                "ref_model is a function: it is the second argument, the reference of the reward; "
                "reward functions go to reward_funcs="
            )
    if RewardKind(args.dense_reward) is RewardKind.BASELINE_RELATIVE and (ref_model is None or ref_model == []):
        raise ModelError("DPRTrainer needs ref_model, the reference of the reward; or dense_reward='logprob'")


def check_mixture(args: DPRConfig, functions: RewardFunctions, environment_factory: Any) -> None:
    """Refuse a hybrid reward without a reward from outside.

    Raises:
        ConfigError: `dense_reward_weight` below 1, and nothing to mix in.
    """
    if args.dense_reward_weight < 1 and len(functions) == 0 and environment_factory is None:
        raise ConfigError(
            f"dense_reward_weight={args.dense_reward_weight} mixes in a reward from outside: give reward_funcs, "
            "or leave it at 1"
        )


def check_processes(trainer: Any) -> None:
    """Refuse processes that a launcher started and that each would train alone, over one another's files.

    Raises:
        ConfigError: accelerate did not join them, which on a machine without GPU it does only if `use_cpu` is set.
    """
    started, joined = int(os.environ.get("WORLD_SIZE", "1")), trainer.accelerator.num_processes
    if started > 1 and joined == 1:
        raise ConfigError(
            f"a launcher started {started} processes, which are not joined: set use_cpu=True on a machine without GPU"
        )


def check_number_of_prompts(trainer: Any) -> None:
    """Refuse fewer prompts than one generation takes: TRL would end at once, without an error.

    Raises:
        DataError: there are too few.
    """
    needed = trainer.args.generation_batch_size // trainer.num_generations
    if isinstance(trainer.train_dataset, Dataset) and len(trainer.train_dataset) < needed:
        raise DataError(
            f"train_dataset has {len(trainer.train_dataset)} prompts, and one generation takes {needed} "
            f"(generation_batch_size={trainer.args.generation_batch_size} completions, {trainer.num_generations} a "
            "prompt): add prompts, or lower per_device_train_batch_size or steps_per_generation"
        )


def check_prompt_lengths(trainer: Any, context: int) -> None:
    """Refuse a prompt that leaves no room for a completion in the context, in any data set that is sampled for.

    A prompt has no more tokens than bytes, so few need to be tokenised. Streamed rows are checked as they are sampled.

    Args:
        trainer: whose data sets are looked at.
        context: that the policy and every model of the reward hold, tokens.

    Raises:
        DataError: the first such row.
    """
    budget = trainer.max_completion_length
    room = room_for_prompts(context, budget)
    for name, dataset in _datasets(trainer):
        for row, example in enumerate(dataset):
            if not template_columns(example) and not trainer.tools and _most_tokens(example["prompt"]) <= room:
                continue
            tokens = len(trainer.prompt_ids(example))
            check_context(tokens, context, f"{name}, row {row}", max_completion_length=budget)


def _datasets(trainer: Any) -> Iterator[tuple[str, Any]]:
    given = trainer.eval_dataset if trainer.args.predict_with_generate else None
    evals = given if isinstance(given, dict) else {"": given}
    found = {"train_dataset": trainer.train_dataset}
    found |= {f"eval_dataset {name}".rstrip(): dataset for name, dataset in evals.items()}
    for name, dataset in found.items():
        if isinstance(dataset, Dataset) and "prompt" in dataset.column_names:
            yield name, dataset


def _most_tokens(prompt: Any) -> float:
    """No fewer tokens than a prompt has: infinity where a turn holds more than its text, which must be tokenised.

    With pictures 0: their tokens are the model's.
    """
    if isinstance(prompt, str):
        return len(prompt.encode()) + _TEMPLATE_TOKENS
    contents = [turn.get("content") for turn in prompt]
    if any(part.get("type") != "text" for content in contents if isinstance(content, list) for part in content):
        return 0
    more = any(value is not None for turn in prompt for name, value in turn.items() if name not in ("role", "content"))
    if more or not all(isinstance(content, str) for content in contents):
        return math.inf
    return sum(len(content.encode()) for content in contents) + _TEMPLATE_TOKENS
