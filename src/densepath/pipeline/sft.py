"""The SFT stage: from the given model to `sft/model`, with references kept on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from densepath.methods import SFTRun
from densepath.methods._stage import TRAIN_FLOPS, parameters_of, sft_config, tokens_trained, train_shown
from densepath.methods.continued_sft import encoded_demonstrations
from densepath.models.compat import check_same_tokenizer
from densepath.models.load import load_frozen, load_tokenizer, load_trainable
from densepath.models.quantized import parameter_count
from densepath.pipeline.run_folder import RunFolder
from densepath.records.arm import Budget
from densepath.records.outcome import Outcome
from densepath.terminal import Console, say
from densepath.trainers.sft import save_model_atomic, sft_trainer
from densepath.trainers.trl_config import peft_config


def run_sft(run: RunFolder, sft: SFTRun, others: Mapping[str, Any], console: Console, title: str) -> None:
    """SFT from the given model; leaves `sft/model` and `sft/references/<fraction>`, and goes on after a kill."""
    started = run.begin("sft")
    arguments, folder = sft.arguments, run / "sft"
    # Later stages load the tokenizer that SFT saves, which keeps these options (`SFTRun.tokenizer`).
    tokenizer = load_tokenizer(sft.base, **arguments.tokenizer_options())
    config = sft_config(arguments, others, folder)
    model = load_trainable(arguments, sft.base)
    trainer = sft_trainer(
        model,
        tokenizer,
        encoded_demonstrations(sft, tokenizer),
        config,
        peft_config=peft_config(arguments, model),
        reference_folder=folder / "references",
        fractions=arguments.reference_fractions,
        ema_decay=arguments.reference_ema_decay,
    )
    train_shown(trainer, folder, console, title)
    save_model_atomic(trainer, tokenizer, folder / "model", {"fraction": 1.0})
    tokens, steps = tokens_trained(folder), trainer.state.global_step
    seen = steps * config.train_batch_size * config.gradient_accumulation_steps
    budget = Budget(demonstrations=seen, tokens=tokens, flops=TRAIN_FLOPS * tokens * parameters_of(trainer))
    run.finish("sft", started, Outcome(budget, steps))


def take_sft(run: RunFolder, sft: SFTRun, others: Mapping[str, Any], console: Console, title: str) -> None:
    """Take the SFT model that was given, and find what a step of SFT on these demonstrations would cost.

    Raises:
        ModelError: it cannot be loaded, or the models do not share a tokenizer.
    """
    started = time.monotonic()
    arguments = sft.arguments
    tokenizer = sft.tokenizer()
    for name in sft.references:
        other = load_tokenizer(sft.reference(name), trust_remote_code=arguments.trust_remote_code)
        check_same_tokenizer(tokenizer, other, special_tokens=False)
    lengths = [len(ids) for ids in encoded_demonstrations(sft, tokenizer)["input_ids"]]
    config = sft_config(arguments, others, run / "sft")
    batch = config.train_batch_size * config.gradient_accumulation_steps
    tokens = batch * sum(lengths) / len(lengths)
    parameters = parameter_count(load_frozen(arguments, sft.model))
    say(console, f"{title}: {sft.model}, given; references: {', '.join(sft.references)}")
    run.finish(
        "sft",
        started,
        Outcome(Budget(demonstrations=batch, tokens=tokens, flops=TRAIN_FLOPS * tokens * parameters), 1),
    )
