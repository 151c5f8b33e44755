"""The training stages of a run: SFT with references, DPR, and the continued-SFT control. Each goes on after a kill."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig

from densepath.config.mixins import TrainableArguments
from densepath.config.run import RunArguments
from densepath.data import encode_demonstrations
from densepath.errors import ConfigError
from densepath.io import read_jsonl
from densepath.models.load import load_model, load_tokenizer
from densepath.models.references import EMA_NAME, reference_name
from densepath.pipeline.data import demonstration_pairs, fitting_rows, longest_prompt, prompt_dataset, read_split
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.trl_config import QUIET, device_defaults, peft_config, trl_config
from densepath.progress import StageProgress
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import view_on_base
from densepath.terminal import Console
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.progress import ProgressCallback
from densepath.trainers.sft import save_model_atomic, sft_trainer, train_resumable

FORWARD_FLOPS = 2
TRAIN_FLOPS = 6
"""FLOPs a parameter and token: 2 forward, 4 backward; scoring and sampling go forward alone."""


def prefixed(others: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The keys with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in others.items() if key.startswith(prefix)}


def train_shown(trainer: Any, folder: Path, console: Console, title: str) -> None:
    """Train with a progress bar, resuming if there is something to resume."""
    trainer.remove_callback(PrinterCallback)
    with StageProgress(console, title, None) as progress:
        trainer.add_callback(ProgressCallback(progress))
        train_resumable(trainer, folder)


def tokens_trained(folder: Path) -> int:
    """Cumulative tokens at the end of a training stage, as TRL counts them."""
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if row.get("num_tokens")]
    return int(rows[-1]["num_tokens"]) if rows else 0


def sft_config(arguments: RunArguments, others: dict[str, Any], folder: Path, **changes: Any) -> SFTConfig:
    """TRL's config of an SFT stage: densepath's defaults, the recipe's `sft_*` keys, then `changes`."""
    values = {
        **QUIET,
        **device_defaults(),
        "output_dir": str(folder),
        "seed": arguments.seed,
        "learning_rate": arguments.sft_learning_rate,
        "max_steps": arguments.sft_max_steps,
        "per_device_train_batch_size": arguments.sft_per_device_train_batch_size,
        "save_steps": arguments.save_steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": arguments.sft_max_steps // 20,
        "max_length": None,  # rows were cut when they were encoded
        **prefixed(others, "sft_"),
        **changes,
    }
    return trl_config(SFTConfig, values, "sft_")


def dpr_config(arguments: RunArguments, others: dict[str, Any], folder: Path, beta: float) -> DPRConfig:
    """The config of the DPR stage: densepath's defaults, the recipe's `dpr_*` keys, then `beta`."""
    values = {
        **QUIET,
        **device_defaults(),
        "output_dir": str(folder),
        "seed": arguments.seed,
        "learning_rate": arguments.dpr_learning_rate,
        "max_steps": arguments.dpr_max_steps,
        "per_device_train_batch_size": arguments.dpr_per_device_train_batch_size,
        "num_generations": arguments.num_generations,
        "max_completion_length": arguments.max_completion_length,
        "save_steps": arguments.save_steps,
        "lr_scheduler_type": "constant",
        "dense_reward": arguments.dense_reward,
        **prefixed(others, "dpr_"),
        "beta": beta,
    }
    return trl_config(DPRConfig, values, "dpr_")


def encoded_train_split(run: RunFolder, arguments: RunArguments, tokenizer: Any, context: int) -> Dataset:
    """The training demonstrations, tokenised."""
    limit = min(arguments.max_length or context, context)
    rows = read_split(run, "train")
    return encode_demonstrations(rows, tokenizer, limit, drop_overlong=True, source=str(run / "data/train.jsonl"))[0]


def run_sft(
    run: RunFolder, arguments: RunArguments, others: dict[str, Any], console: Console, title: str, context: int
) -> None:
    """SFT from the given model; leaves `sft/model` and `sft/references/<fraction>`."""
    started = time.time()
    folder = run / "sft"
    # Later stages load the tokenizer that SFT saves, which keeps these options.
    tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
    trainer = sft_trainer(
        load_trainable(arguments, arguments.model_name_or_path),
        tokenizer,
        encoded_train_split(run, arguments, tokenizer, context),
        sft_config(arguments, others, folder),
        peft_config=peft_config(arguments),
        reference_folder=folder / "references",
        fractions=arguments.reference_fractions,
        ema_decay=arguments.reference_ema_decay,
    )
    train_shown(trainer, folder, console, title)
    save_model_atomic(trainer, tokenizer, folder / "model", {"fraction": 1.0})
    tokens = tokens_trained(folder)
    flops = TRAIN_FLOPS * tokens * parameters_of(trainer)
    run.finish("sft", started, tokens=tokens, flops=flops, steps=trainer.state.global_step)


def parameters_of(trainer: Any) -> int:
    """Parameters that a forward pass multiplies: the adapters of a PEFT model included."""
    return sum(p.numel() for p in trainer.model.parameters())


def load_frozen(arguments: TrainableArguments, path: str | Path) -> Any:
    """A model that is only sampled from and scored: adapters folded in, on the GPU where there is one."""
    return load_model(
        str(path),
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        merge=True,
        device="auto",
    )


def load_trainable(arguments: TrainableArguments, path: str | Path) -> Any:
    """A model to train; the trainer moves it to its device."""
    return load_model(
        str(path), dtype=arguments.dtype, trust_remote_code=arguments.trust_remote_code, for_training=True
    )


def reference_path(run: RunFolder, arguments: RunArguments, reference: str) -> str:
    """Where a reference lies: the model before SFT for 0, what SFT kept for a fraction or `ema`, or a path.

    Raises:
        ConfigError: a fraction at which no reference was kept.
    """
    if reference == EMA_NAME:
        return str(run / f"sft/references/{EMA_NAME}")
    try:
        fraction = float(reference)
    except ValueError:
        return reference
    if fraction == 0:
        return arguments.model_name_or_path
    path = run / f"sft/references/{reference_name(fraction)}"
    if not path.exists():
        kept = ", ".join(reference_name(f) for f in arguments.reference_fractions)
        raise ConfigError(f"reference={reference}: none was kept there; reference_fractions holds {kept}")
    return str(path)


@dataclass(frozen=True)
class Stage:
    """A training that goes on from the SFT model of a run: what it reads, and where it writes.

    Attributes:
        source: the run whose `data/*.jsonl`, `sft/model` and `sft/references/<fraction>` are read.
        folder: where the model, its metrics and checkpoints go.
        arguments: the recipe.
        others: its `sft_*` and `dpr_*` keys, for TRL's configs.
        console: where progress goes.
        title: of the progress.
        context: of the model, in tokens.
    """

    source: RunFolder
    folder: Path
    arguments: RunArguments
    others: dict[str, Any]
    console: Console
    title: str
    context: int


def run_dpr(
    run: RunFolder,
    arguments: RunArguments,
    others: dict[str, Any],
    console: Console,
    title: str,
    context: int,
    *,
    reference: str,
    beta: float,
) -> None:
    """DPR from `sft/model` with the chosen reference and beta; leaves `dpr/model`."""
    started = time.time()
    stage = Stage(run, run / "dpr", arguments, others, console, title, context)
    run.finish("dpr", started, **train_dpr(stage, reference=reference, beta=beta))


def train_dpr(stage: Stage, *, reference: str, beta: float) -> dict[str, Any]:
    """DPR from the SFT model; leaves `model` in the stage's folder.

    Args:
        stage: what it reads, and where it writes.
        reference: a fraction, `ema` or a path; several fractions with commas between them are averaged.
        beta: coefficient of the KL.

    Returns:
        What it cost: tokens, FLOPs, completions, steps.
    """
    source, folder, arguments, context = stage.source, stage.folder, stage.arguments, stage.context
    tokenizer = load_tokenizer(str(source / "sft/model"))
    config = dpr_config(arguments, stage.others, folder, beta)
    rows = read_split(source, "rl" if arguments.rl_prompts is not None else "train")
    rows = fitting_rows(rows, tokenizer, longest_prompt(arguments, context, config.max_completion_length or 0))
    held_out = read_split(source, "validation")
    policy = load_trainable(arguments, source / "sft/model")
    trainer = DPRTrainer(
        model=policy,
        ref_model=[
            frozen_reference(policy, reference_path(source, arguments, name), arguments, f"ref_{index}")
            for index, name in enumerate(reference_names(reference))
        ],
        args=config,
        train_dataset=prompt_dataset(rows),
        eval_dataset=None if config.eval_strategy == "no" else demonstration_pairs(held_out, tokenizer, context),
        processing_class=tokenizer,
    )
    train_shown(trainer, folder, stage.console, stage.title)
    save_model_atomic(trainer, tokenizer, folder / "model", {"beta": beta})
    return {
        "tokens": tokens_trained(folder),
        "flops": sum(row.get("flops") or 0.0 for row in read_jsonl(folder / "metrics.jsonl")),
        "completions": trainer.state.global_step * trainer.args.generation_batch_size,
        "steps": trainer.state.global_step,
    }


def reference_names(reference: str) -> list[str]:
    """The references that `reference` names.

    >>> reference_names("0.25,0.5"), reference_names("models/a,b")
    (['0.25', '0.5'], ['models/a,b'])
    """
    names = [name.strip() for name in reference.split(",")]
    try:
        return [name if name == EMA_NAME else reference_name(float(name)) for name in names]
    except ValueError:
        return [reference]


def frozen_reference(policy: Any, path: str, arguments: TrainableArguments, name: str = "ref") -> FrozenPolicy | Any:
    """The reference as an adapter on the policy's base, or as that base, where it is one; else a model of its own."""
    return view_on_base(policy, path, name) or load_frozen(arguments, path)


def run_continued_sft(
    run: RunFolder, arguments: RunArguments, others: dict[str, Any], console: Console, title: str, context: int
) -> None:
    """The control: SFT goes on from `sft/model` with the compute that DPR took; leaves `continued_sft/model`.

    FLOPs are 2 a parameter and token forward, 4 backward, over the tokens that were really computed: a prompt
    that several completions share counts once. `samples` trains on as many demonstrations as DPR sampled completions.
    """
    started = time.time()
    sft, dpr = run.outcome("sft"), run.outcome("dpr")
    if arguments.continued_sft == "flops":
        steps = max(1, round(dpr["flops"] / (sft["flops"] / sft["steps"])))
    else:
        steps = max(1, round(dpr["completions"] / arguments.sft_per_device_train_batch_size))
    stage = Stage(run, run / "continued_sft", arguments, others, console, title, context)
    run.finish("continued_sft", started, **train_continued_sft(stage, steps=steps))


def train_continued_sft(stage: Stage, *, steps: int) -> dict[str, Any]:
    """SFT that goes on from the SFT model on the same demonstrations; leaves `model` in the stage's folder.

    Args:
        stage: what it reads, and where it writes.
        steps: optimizer steps.

    Returns:
        What it cost: tokens, FLOPs, demonstrations, steps.
    """
    source, folder, arguments = stage.source, stage.folder, stage.arguments
    rate = arguments.continued_sft_learning_rate
    changes = {
        "max_steps": steps,
        "learning_rate": arguments.sft_learning_rate if rate is None else rate,
        "warmup_steps": steps // 20,
        "seed": arguments.seed + 1,  # another order of the demonstrations than SFT's
    }
    tokenizer = load_tokenizer(str(source / "sft/model"))
    config = sft_config(arguments, stage.others, folder, **changes)
    trainer = sft_trainer(
        load_trainable(arguments, source / "sft/model"),
        tokenizer,
        encoded_train_split(source, arguments, tokenizer, stage.context),
        config,
    )
    train_shown(trainer, folder, stage.console, stage.title)
    save_model_atomic(trainer, tokenizer, folder / "model", {"steps": steps})
    tokens = tokens_trained(folder)
    return {
        "tokens": tokens,
        "flops": TRAIN_FLOPS * tokens * parameters_of(trainer),
        "demonstrations": steps * config.train_batch_size * config.gradient_accumulation_steps,
        "steps": steps,
    }
