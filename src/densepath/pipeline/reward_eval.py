"""`densepath reward-eval`, and what it shares with the other commands that use the reward without RL."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densepath.config.reward import PairArguments, RewardEvalArguments
from densepath.data.outputs import check_outputs, models_read, rows_read
from densepath.data.sources import load_rows
from densepath.evals.reward_eval import evaluate_reward
from densepath.io import write_json_atomic
from densepath.models import locate
from densepath.models.compat import check_same_tokenizer
from densepath.models.load import load_model, load_tokenizer
from densepath.progress import StageProgress
from densepath.records.codec import to_json
from densepath.records.reward_eval import SetAside
from densepath.report.console import print_parts
from densepath.report.next_step import after_reward_eval
from densepath.report.reward_eval import reward_eval_parts
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.terminal import Console, say, warn

NAMED = 3
"""Rows set aside that are named in the terminal; the file names all."""


def load_dense_reward(arguments: PairArguments, console: Console) -> DenseReward:
    """The reward that the arguments describe; warnings go to the console."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        reward = DenseReward.from_models(
            arguments.model_name_or_path,
            arguments.ref_model_name_or_path,
            kind=arguments.dense_reward,
            dtype=arguments.dtype,
            device=arguments.device,
            **arguments.tokenizer_options(),
            token_budget=arguments.token_budget,
        )
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            warn(console, warning.message)
    return reward


def pair_inputs(arguments: PairArguments) -> dict[str, list[Path]]:
    """Files that a command reads which makes the reward of two models and reads rows, by argument."""
    template = arguments.chat_template_path
    return {
        "dataset_name": rows_read(arguments.dataset_name, arguments.dataset_train_split),
        "model_name_or_path": models_read(arguments.model_name_or_path),
        "ref_model_name_or_path": models_read(*arguments.ref_model_name_or_path),
        "chat_template_path": [] if template is None else [Path(template)],
    }


def run_reward_eval_command(arguments: RewardEvalArguments, console: Console) -> dict[str, Any]:
    """Print how well the reward agrees with labels beside its baselines; returns (and writes) the record.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    base_name = arguments.base_model_name_or_path
    read = {**pair_inputs(arguments), "base_model_name_or_path": models_read(base_name)}
    check_outputs({"output_file": arguments.output_file}, read)
    rows = load_rows(arguments.dataset_name, arguments.dataset_train_split, None, limit=None, seed=None)
    if base_name is not None:
        trust = arguments.trust_remote_code
        check_same_tokenizer(
            load_tokenizer(arguments.model_name_or_path, trust_remote_code=trust),
            load_tokenizer(base_name, trust_remote_code=trust),
            special_tokens=False,
        )
    reward = load_dense_reward(arguments, console)
    with StageProgress(console, "reward-eval", None, "completion") as progress:
        found = evaluate_reward(
            reward,
            rows,
            task=None if arguments.task == "auto" else arguments.task,
            base=None if base_name is None else _base(arguments, base_name, reward),
            aggregation=arguments.aggregation,
            max_samples=arguments.max_samples,
            step_separator=arguments.step_separator.replace("\\n", "\n").replace("\\t", "\t"),
            seed=arguments.seed,
            source=arguments.dataset_name,
            on_progress=lambda done, total: progress.update(done, total),
        )
    record = {
        "dataset_name": arguments.dataset_name,
        "model_name_or_path": arguments.model_name_or_path,
        "ref_model_name_or_path": arguments.ref_model_name_or_path,
        "base_model_name_or_path": base_name,
        **to_json(found),
    }
    print_set_aside(found.set_aside, arguments.dataset_name, console)
    print_parts(console, *reward_eval_parts(found))
    say(console, found.interval, style="dim")
    print_parts(console, after_reward_eval(arguments.model_name_or_path, arguments.ref_model_name_or_path))
    if arguments.output_file is not None:
        write_json_atomic(Path(arguments.output_file), record)
        say(console, f"figures: {Path(arguments.output_file).resolve()}")
    return record


def print_set_aside(set_aside: Sequence[SetAside], source: str, console: Console) -> None:
    """Name the rows that were left out, the first few of them."""
    if not set_aside:
        return
    named = "; ".join(f"row {item.row}: {item.reason}" for item in set_aside[:NAMED])
    more = f"; and {len(set_aside) - NAMED} more" if len(set_aside) > NAMED else ""
    warn(console, f"{source}: {len(set_aside)} rows set aside: {named}{more}")


def _base(arguments: PairArguments, name: str, reward: DenseReward) -> FrozenPolicy:
    """The model before SFT; a reference itself where it is the same one."""
    for policy, reference in zip(reward.refs, arguments.ref_model_name_or_path, strict=False):
        if locate.locate(name) == locate.locate(reference):
            return policy
    return FrozenPolicy(
        load_model(
            name,
            dtype=arguments.dtype,
            trust_remote_code=arguments.trust_remote_code,
            merge=True,
            device=arguments.device,
        )
    )
