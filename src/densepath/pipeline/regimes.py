"""The small model before SFT of the digit regimes: trained here, since no hub has it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback
from trl import SFTConfig

from densepath.data.encode import encode_demonstrations
from densepath.data.regimes import ANSWER_TOKENS, BEFORE_SFT, PROMPT_TOKENS, Regime, regime_rows, regime_tokenizer
from densepath.io import remove
from densepath.progress import StageProgress
from densepath.terminal import Console
from densepath.trainers.callbacks import save_folder_atomic
from densepath.trainers.progress import ProgressCallback
from densepath.trainers.sft import save_model, sft_trainer, train_resumable
from densepath.trainers.trl_config import QUIET, device_defaults, trl_config

COMPLETION_TOKENS = ANSWER_TOKENS + 1
ROWS, STEPS, BATCH, RATE, WARMUP = 120_000, 1800, 64, 2e-3, 50
"""Of the model before SFT: demonstrations, optimizer steps, batch, peak learning rate, warm-up steps."""


def before_sft(folder: Path, regime: Regime, seed: int, console: Console, *, steps: int = STEPS) -> Path:
    """Folder of a regime's model before SFT; trained if it is not there, and random in `scratch`.

    Args:
        folder: where models before SFT are kept; regimes with one mixture share a model.
        regime: which.
        seed: of the initial weights, the demonstrations and their order.
        console: where progress goes.
        steps: optimizer steps; other than the default in tests.
    """
    mixture, target = BEFORE_SFT[regime], before_sft_path(folder, regime, seed)
    path = target.parent
    if target.exists():
        return target
    tokenizer, model = regime_tokenizer(), new_model(seed)
    if not mixture:
        save_folder_atomic(target, functools.partial(_save, model, tokenizer), {"seed": seed})
        return target
    rows = regime_rows(mixture, min(ROWS, steps * BATCH), seed=seed)
    encoded, _ = encode_demonstrations(
        rows, tokenizer, PROMPT_TOKENS + COMPLETION_TOKENS, source=f"regime {regime.value}"
    )
    trainer = sft_trainer(model, tokenizer, encoded, _config(path, seed, steps))
    trainer.remove_callback(PrinterCallback)
    with StageProgress(console, f"model before SFT, seed {seed}", None) as progress:
        trainer.add_callback(ProgressCallback(progress))
        train_resumable(trainer, path)
    save_folder_atomic(target, lambda place: save_model(trainer, tokenizer, place), {"seed": seed})
    for checkpoint in path.glob("*checkpoint-*"):
        remove(checkpoint)
    return target


def before_sft_path(folder: Path, regime: Regime, seed: int) -> Path:
    """Where a regime's model before SFT lies; regimes whose models learned from one mixture share it."""
    name = "_".join(f"{who.value}-{share:g}" for who, share in BEFORE_SFT[regime].items()) or "random"
    return folder / name / f"seed-{seed}" / "model"


def new_model(seed: int) -> GPT2LMHeadModel:
    """Random weights: 0.1M parameters, 2 layers of width 64 with pre-layer norm, ReLU and learned positions."""
    tokenizer = regime_tokenizer()
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=PROMPT_TOKENS + COMPLETION_TOKENS,
            n_embd=64,
            n_layer=2,
            n_head=4,
            activation_function="relu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            summary_first_dropout=0.0,
            initializer_range=0.1,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _config(folder: Path, seed: int, steps: int) -> SFTConfig:
    return trl_config(
        SFTConfig,
        {
            **QUIET,
            **device_defaults(),
            "output_dir": str(folder),
            "seed": seed,
            "learning_rate": RATE,
            "lr_scheduler_type": "cosine",
            "warmup_steps": min(WARMUP, steps // 10),
            "adam_beta2": 0.98,
            "max_steps": steps,
            "per_device_train_batch_size": BATCH,
            "save_steps": steps,
            "logging_steps": 50,
            "max_length": None,
        },
    )


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
