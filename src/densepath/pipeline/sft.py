"""The SFT stage: from the given model to `sft/model`, with references kept on the way.

Where the recipe leaves open how long SFT is, it begins with one pass over the demonstrations. While the held-out NLL
was still falling at its end, it begins anew with twice as many: what it leaves is to the bit what a recipe with that
number of passes leaves, with one schedule of the learning rate, and references along it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.io import read_sealed_json, write_sealed_json
from densepath.methods import SFTRun
from densepath.methods._stage import TRAIN_FLOPS, free_models, parameters_of, sft_config, tokens_trained, train_shown
from densepath.methods.continued_sft import encoded_demonstrations
from densepath.models.compat import check_same_tokenizer
from densepath.models.load import load_frozen, load_tokenizer, load_trainable
from densepath.models.quantized import parameter_count
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.selection import unfinished
from densepath.records.arm import Budget
from densepath.records.outcome import Outcome
from densepath.terminal import Console, say
from densepath.trainers.sft import save_model_atomic, sft_trainer
from densepath.trainers.trl_config import peft_config

PASSES = "sft_passes.json"
"""Where a run folder keeps how long SFT is, and why it is not shorter."""


def run_sft(run: RunFolder, sft: SFTRun, others: Mapping[str, Any], console: Console, title: str) -> None:
    """SFT from the given model; leaves `sft/model` and `sft/references/<fraction>`, and goes on after a kill."""
    arguments = sft.arguments
    most = arguments.sft_most_epochs if arguments.open_ended else 0
    passes, reasons = _passes(run)
    while True:
        started = run.begin("sft")
        length = {"num_train_epochs": passes} if most else {}
        outcome = _train(run, sft, others, console, title if passes == 1 else f"{title}, {passes} passes", **length)
        if 2 * passes > most:
            break
        free_models()
        asked = time.monotonic()
        reason = unfinished(sft, console, f"{title}: is it finished?")
        started += time.monotonic() - asked  # which is no training
        if reason is None:
            break
        made, passes = "1 pass" if passes == 1 else f"{passes} passes", 2 * passes
        reasons = [*reasons, f"SFT began anew with {passes} passes. After {made}: {reason}"]
        say(console, f"{title}: {reasons[-1]}")
        _begin_anew(run, passes, reasons)
    run.finish("sft", started, outcome)


def passes_said(run_dir: Path) -> list[str]:
    """Why SFT is longer than one pass, a sentence for each time that it began anew."""
    return list(_kept(run_dir)["reasons"])


def _passes(run: RunFolder) -> tuple[int, list[str]]:
    """How many passes SFT is to make, and why it is not fewer; a beginning anew that was killed is finished."""
    kept = _kept(run.path)
    if not kept["begun"]:
        _begin_anew(run, kept["passes"], kept["reasons"])
    return kept["passes"], kept["reasons"]


def _kept(run_dir: Path) -> dict[str, Any]:
    path = run_dir / PASSES
    remedy = f"remove it and {run_dir / 'sft'} to begin SFT again"
    return read_sealed_json(path, remedy) if path.exists() else {"passes": 1, "begun": True, "reasons": []}


def _begin_anew(run: RunFolder, passes: int, reasons: Sequence[str]) -> None:
    """Remove a training that was too short. What is killed within goes on here, and not with half of its files."""
    kept = {"passes": passes, "reasons": list(reasons)}
    write_sealed_json(run / PASSES, {**kept, "begun": False})
    run.forget("sft")
    write_sealed_json(run / PASSES, {**kept, "begun": True})


def _train(
    run: RunFolder, sft: SFTRun, others: Mapping[str, Any], console: Console, title: str, **length: Any
) -> Outcome:
    """One training into `sft`, or what is left of it."""
    arguments, folder = sft.arguments, run / "sft"
    # Later stages load the tokenizer that SFT saves, which keeps these options (`SFTRun.tokenizer`).
    tokenizer = load_tokenizer(sft.base, **arguments.tokenizer_options())
    config = sft_config(arguments, others, folder, **length)
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
    return Outcome(
        Budget(demonstrations=seen, tokens=tokens, flops=TRAIN_FLOPS * tokens * parameters_of(trainer)), steps
    )


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
