"""Rounds of sampling and training that SPIN and GSIL share. Each goes on from the policy of the round before."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from densepath.config.options import check_finite, option
from densepath.config.run import RunArguments
from densepath.data.encode import Encoded, encode_pairs
from densepath.data.training_rows import longest_prompt
from densepath.errors import ConfigError
from densepath.io import read_log, remembered, remove, write_jsonl_atomic
from densepath.methods._stage import (
    FORWARD_FLOPS,
    TRAIN_FLOPS,
    Stage,
    free_models,
    parameters_of,
    prefixed,
    tokens_trained,
    tracking,
)
from densepath.models.compat import eos_token_ids
from densepath.models.load import load_frozen, load_trainable
from densepath.progress import StageProgress
from densepath.records.arm import Budget
from densepath.records.codec import field_names, from_json, to_json
from densepath.records.outcome import Outcome
from densepath.trainers.self_play import SelfPlayConfig, SelfPlayTrainer, opponent_tokens, self_play_pairs
from densepath.trainers.sft import save_model_atomic
from densepath.trainers.trl_config import QUIET, device_defaults, peft_config, trl_config

OPTIMIZER_KEYS = (
    *("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "optim", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "gradient_accumulation_steps"),
    *("bf16", "fp16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_cpu"),
)
"""The `dpr_*` keys that SPIN and GSIL are trained with too."""


@dataclass
class SelfPlayArguments(RunArguments):
    """What SPIN and GSIL take beyond `densepath run`."""

    iterations: int = option(
        1, "Rounds of SPIN and GSIL: the opponent of a round is the policy of the round before.", least=1
    )
    self_play_beta: float = option(0.1, "Factor on the log-ratio in the losses of SPIN (lambda) and GSIL (beta).")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("self_play_beta", self.self_play_beta)
        if not self.self_play_beta > 0:
            raise ConfigError(f"self_play_beta={self.self_play_beta} must be above 0")


@dataclass(frozen=True)
class _Round:
    """One round of self-play: its folder, its opponent, where its model goes, how much it trains, its own seed."""

    number: int
    folder: Path
    opponent: Path
    model: Path
    pairs: int
    seed: int


def self_play(stage: Stage, loss: str) -> Outcome:
    """Rounds of sampling and training; each finished one is kept, and a training in between is resumed."""
    rounds = stage.arguments.iterations
    opponent = stage.sft.model
    outcomes: list[Outcome] = []
    for number in range(1, rounds + 1):
        folder = stage.folder / f"iteration-{number}"
        model = (stage.folder if number == rounds else folder) / "model"
        # what is left of the budget, over the rounds that are left
        seed = stage.arguments.seed * 1000 + number
        pairs = math.ceil((stage.samples - sum(o.budget.samples for o in outcomes)) / (rounds - number + 1))
        this = _Round(number, folder, opponent, model, max(1, pairs), seed)
        outcome = remembered(folder / "outcome.json", functools.partial(_train_round, stage, loss, this))
        for checkpoint in folder.glob("*checkpoint-*"):
            remove(checkpoint)
        outcomes.append(from_json(Outcome, outcome))
        opponent = model
    rows = [
        {"iteration": number, **row}
        for number in range(1, rounds + 1)
        for row in read_log(stage.folder / f"iteration-{number}/metrics.jsonl")
    ]
    write_jsonl_atomic(stage.folder / "metrics.jsonl", rows)
    budgets = [outcome.budget for outcome in outcomes]
    total = {name: sum(getattr(budget, name) for budget in budgets) for name in field_names(Budget)}
    return Outcome(Budget(**total), sum(outcome.steps for outcome in outcomes))


def _train_round(stage: Stage, loss: str, this: _Round) -> dict[str, Any]:
    free_models()  # of the round before
    tokenizer = stage.sft.tokenizer()
    config = _config(stage, loss, this)
    pairs = remembered(this.folder / "pairs.json", lambda: _pairs(stage, tokenizer, this))
    free_models()  # the opponent
    model = load_trainable(stage.arguments, this.opponent)
    trainer = SelfPlayTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=peft_config(stage.arguments, model),
    )
    stage.train(trainer, this.folder)
    save_model_atomic(trainer, tokenizer, this.model, {"iteration": this.number, "loss": loss})
    tokens, parameters = tokens_trained(this.folder), parameters_of(trainer)
    seen = len(pairs)
    flops = (TRAIN_FLOPS * tokens + FORWARD_FLOPS * opponent_tokens(pairs)) * parameters
    return to_json(Outcome(Budget(seen, seen, tokens, flops), trainer.state.global_step))


def _pairs(stage: Stage, tokenizer: Any, this: _Round) -> list[dict[str, Any]]:
    opponent = load_frozen(stage.arguments, this.opponent)
    demonstrations = _demonstrations(stage, tokenizer, this)
    with StageProgress(stage.console, f"{stage.title}, sampling", this.pairs, "sample") as progress:
        pairs = self_play_pairs(
            opponent,
            demonstrations,
            this.pairs,
            max_completion_length=stage.arguments.max_completion_length,
            eos_token_ids=eos_token_ids(opponent, tokenizer),
            seed=this.seed,
            on_progress=progress.update,
        )
    return pairs


def _demonstrations(stage: Stage, tokenizer: Any, this: _Round) -> list[Encoded]:
    """Assistant turns of training rows whose prompt can be sampled from, cut as SFT cut them; as many as are used."""
    arguments = stage.arguments
    context = stage.sft.context
    limit = min(arguments.max_length or context, context)
    longest = min(longest_prompt(context, arguments.max_completion_length, arguments.max_prompt_length), limit - 1)
    rows = stage.sft.rows("train")
    found: list[Encoded] = []
    for row in random.Random(this.seed).sample(rows, len(rows)):
        found += [
            Encoded(pair.prompt_ids, pair.completion_ids[: limit - len(pair.prompt_ids)])
            for pair in encode_pairs(row, tokenizer, limit)
            if len(pair.prompt_ids) <= longest
        ]
        if len(found) >= this.pairs:
            break
    return found


def _config(stage: Stage, loss: str, this: _Round) -> SelfPlayConfig:
    arguments = stage.arguments
    given = {key: value for key, value in prefixed(stage.others, "dpr_").items() if key in OPTIMIZER_KEYS}
    batch = arguments.dpr_per_device_train_batch_size
    values = {
        **QUIET,
        **device_defaults(),
        "output_dir": str(this.folder),
        "seed": arguments.seed + this.number,
        "learning_rate": arguments.dpr_learning_rate,
        "max_steps": math.ceil(this.pairs / (batch * int(given.get("gradient_accumulation_steps", 1)))),
        "per_device_train_batch_size": batch,
        "save_steps": arguments.save_steps,
        "lr_scheduler_type": "constant",
        "beta": arguments.self_play_beta,
        "self_play_loss": loss,
        **tracking(arguments, this.folder),
        **given,
    }
    return trl_config(SelfPlayConfig, values, "dpr_")
