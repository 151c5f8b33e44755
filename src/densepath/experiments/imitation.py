"""The baselines that DPR has to beat: SPIN, GSIL, DFT and extrapolated weights. Each goes on from `sft/model`."""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from densepath.data import Encoded, encode_pairs
from densepath.experiments.cell import Cell
from densepath.io import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from densepath.models.compat import eos_token_ids
from densepath.models.extrapolation import save_extrapolated
from densepath.models.load import load_tokenizer
from densepath.pipeline.data import longest_prompt, read_split
from densepath.pipeline.progress import StageProgress
from densepath.pipeline.selection import chosen
from densepath.pipeline.training import (
    FORWARD_FLOPS,
    TRAIN_FLOPS,
    load_frozen,
    load_trainable,
    parameters_of,
    prefixed,
    reference_path,
    tokens_trained,
    train_continued_sft,
    train_shown,
)
from densepath.pipeline.trl_config import QUIET, device_defaults, trl_config
from densepath.trainers.callbacks import save_folder_atomic
from densepath.trainers.self_play import SPIN, SelfPlayConfig, SelfPlayTrainer, opponent_tokens, self_play_pairs
from densepath.trainers.sft import save_model_atomic

OPTIMIZER_KEYS = (
    *("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "optim", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "gradient_accumulation_steps"),
    *("bf16", "fp16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_cpu"),
)
"""The `dpr_*` keys that SPIN and GSIL are trained with too."""

ADDABLE = ("samples", "demonstrations", "tokens", "flops", "steps")


def spin(cell: Cell) -> dict[str, Any]:
    """SPIN (Chen et al. 2024): `iterations` rounds of demonstrations against the policy of the round before."""
    return _self_play(cell, SPIN)


def gsil(cell: Cell) -> dict[str, Any]:
    """GSIL (Xiao et al. 2024), with the surrogate `gsil_loss`."""
    return _self_play(cell, cell.arguments.gsil_loss)


def dft(cell: Cell) -> dict[str, Any]:
    """Dynamic fine-tuning: SFT goes on, each token's loss weighted by its own probability, on DPR's sample budget."""
    steps = max(1, round(cell.samples / cell.demonstrations_per_step))
    reweighted = dataclasses.replace(cell, others={**cell.others, "sft_loss_type": "dft"})
    return {"samples": 0, **train_continued_sft(reweighted, steps=steps)}


def extrapolate(cell: Cell) -> dict[str, Any] | None:
    """Weights `theta_SFT + alpha (theta_SFT - theta_ref)`, with the cell's reference; nothing is trained.

    None where `reference: auto` found that none helps.
    """
    arguments, reference = cell.arguments, cell.arguments.reference
    if reference == "auto":
        found = chosen(cell.source)
        if found is None:
            return None
        reference = found.reference
    sft, ref = cell.source / "sft/model", reference_path(cell.source, arguments, reference)
    written = 0

    def save(folder: Path) -> None:
        nonlocal written
        written = save_extrapolated(sft, ref, arguments.alpha, folder, trust_remote_code=arguments.trust_remote_code)
        load_tokenizer(sft).save_pretrained(str(folder))

    save_folder_atomic(cell.folder / "model", save, {"alpha": arguments.alpha, "reference": reference})
    # a difference, a product and a sum for each weight
    return {"samples": 0, "demonstrations": 0, "tokens": 0, "flops": 3 * written, "steps": 0}


@dataclass(frozen=True)
class _Round:
    """One round of self-play: its folder, its opponent, where its model goes, how much it trains, its own seed."""

    number: int
    folder: Path
    opponent: Path
    model: Path
    pairs: int
    seed: int


def _self_play(cell: Cell, loss: str) -> dict[str, Any]:
    """Rounds of sampling and training; each finished one is kept, and a training in between is resumed."""
    rounds = cell.arguments.iterations
    opponent = cell.source / "sft/model"
    outcomes: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        folder = cell.folder / f"iteration-{number}"
        model = (cell.folder if number == rounds else folder) / "model"
        if not (folder / "outcome.json").exists():
            # what is left of the budget, over the rounds that are left
            seed = cell.arguments.seed * 1000 + number
            pairs = math.ceil((cell.samples - sum(o["samples"] for o in outcomes)) / (rounds - number + 1))
            outcome = _train_round(cell, loss, _Round(number, folder, opponent, model, max(1, pairs), seed))
            write_json_atomic(folder / "outcome.json", outcome)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
        outcomes.append(read_json(folder / "outcome.json"))
        opponent = model
    rows = [
        {"iteration": number, **row}
        for number in range(1, rounds + 1)
        for row in read_jsonl(cell.folder / f"iteration-{number}/metrics.jsonl")
    ]
    write_jsonl_atomic(cell.folder / "metrics.jsonl", rows)
    return {key: sum(outcome[key] for outcome in outcomes) for key in ADDABLE}


def _train_round(cell: Cell, loss: str, this: _Round) -> dict[str, Any]:
    tokenizer = load_tokenizer(this.opponent)
    config = _config(cell, loss, this)
    pairs_file = this.folder / "pairs.jsonl"
    if not pairs_file.exists():
        write_jsonl_atomic(pairs_file, _pairs(cell, tokenizer, this))
    pairs = read_jsonl(pairs_file)
    trainer = SelfPlayTrainer(
        model=load_trainable(cell.arguments, this.opponent),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    train_shown(trainer, this.folder, cell.console, cell.title)
    save_model_atomic(trainer, tokenizer, this.model, {"iteration": this.number, "loss": loss})
    tokens, parameters = tokens_trained(this.folder), parameters_of(trainer)
    seen = len(pairs)
    return {
        "samples": seen,
        "demonstrations": seen,
        "tokens": tokens,
        "flops": (TRAIN_FLOPS * tokens + FORWARD_FLOPS * opponent_tokens(pairs)) * parameters,
        "steps": trainer.state.global_step,
    }


def _pairs(cell: Cell, tokenizer: Any, this: _Round) -> list[dict[str, Any]]:
    opponent = load_frozen(cell.arguments, this.opponent)
    demonstrations = _demonstrations(cell, tokenizer, this)
    with StageProgress(cell.console, f"{cell.title}, sampling", this.pairs, "sample") as progress:
        pairs = self_play_pairs(
            opponent,
            demonstrations,
            this.pairs,
            max_completion_length=cell.arguments.max_completion_length,
            eos_token_ids=eos_token_ids(opponent, tokenizer),
            seed=this.seed,
            on_progress=progress.update,
        )
    del opponent
    gc.collect()
    return pairs


def _demonstrations(cell: Cell, tokenizer: Any, this: _Round) -> list[Encoded]:
    """Assistant turns of training rows whose prompt can be sampled from, cut as SFT cut them; as many as are used."""
    arguments = cell.arguments
    limit = min(arguments.max_length or cell.context, cell.context)
    longest = min(longest_prompt(arguments, cell.context, arguments.max_completion_length), limit - 1)
    rows = read_split(cell.source, "train")
    found: list[Encoded] = []
    for row in random.Random(this.seed).sample(rows, len(rows)):
        found += [
            Encoded(pair.prompt_ids, pair.completion_ids[: limit - len(pair.prompt_ids)])
            for pair in encode_pairs(row, tokenizer)
            if len(pair.prompt_ids) <= longest
        ]
        if len(found) >= this.pairs:
            break
    return found


def _config(cell: Cell, loss: str, this: _Round) -> SelfPlayConfig:
    arguments = cell.arguments
    given = {key: value for key, value in prefixed(cell.others, "dpr_").items() if key in OPTIMIZER_KEYS}
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
        **given,
    }
    return trl_config(SelfPlayConfig, values, "dpr_")
