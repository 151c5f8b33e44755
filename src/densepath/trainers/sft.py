"""Supervised fine-tuning on TRL's `SFTTrainer`, with reference checkpoints kept on the way."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from densepath.errors import ConfigError
from densepath.io import make_folder, read_json, sync_name
from densepath.models.adapters import SavesOwnAdapter, own_adapter, save_own_adapter
from densepath.models.identity import record_base
from densepath.models.load import disable_dropout
from densepath.models.packed_forward import add_packed_forward, with_adapted_heads
from densepath.models.quantized import adapters_in_float32, adapters_kept
from densepath.models.references import reference_name
from densepath.trainers.callbacks import (
    COMPLETE_MARKER,
    LOG,
    CompleteCheckpointCallback,
    MetricsCallback,
    NoLastCheckpoint,
    ReferenceCheckpointCallback,
    last_complete_checkpoint,
    save_folder_atomic,
)
from densepath.trainers.ema import EMACallback
from densepath.trainers.model_card import NamedCard, write_card
from densepath.trainers.refusals import (
    check_evaluation,
    check_optimization,
    check_token,
    refuse_unused,
    refusing,
    without_effect,
)
from densepath.trainers.resuming import Resumable

_USED = frozenset(
    {
        *("loss_type", "shuffle_dataset", "activation_offloading", "router_aux_loss_coef"),
        *("max_length", "pad_to_multiple_of", "pad_token", "eos_token", "chat_template_path", "trust_remote_code"),
    }
)
"""What `SFTConfig` adds to transformers' arguments and a training on ids uses."""
_PACKED = "batches are packed without padding, and rows do not see each other"
_ROWS = "prompt and completion are columns of their own, or turns"
_INSTEAD = {
    "completion_only_loss": "the loss is always that of completions alone; rows with a text alone are all completion",
    "assistant_only_loss": "the loss is always that of the assistant's turns alone",
    "packing": _PACKED,
    "eval_packing": _PACKED,
    "packing_strategy": _PACKED,
    "padding_free": _PACKED,
    "dataset_text_field": _ROWS,
    "truncation_mode": "a row is cut at its end, and left out where its prompt alone is too long",
    "model_init_kwargs": "the model is loaded already",
    "neftune_noise_alpha": "its noise would shrink with the batch, which is one packed row",
}
WITHOUT_EFFECT = without_effect(SFTConfig, _USED, also=("neftune_noise_alpha",))
"""Arguments that SFT refuses with any value but their default, which is given here."""


def check_sft_arguments(args: SFTConfig) -> None:
    """Refuse what has no effect where rows are tokenised before.

    Raises:
        ConfigError: the first such argument.
    """
    unused = dict(WITHOUT_EFFECT)
    if args.completion_only_loss:
        del unused["completion_only_loss"]  # it is what is done
    refuse_unused(args, unused, "SFT, whose rows densepath tokenises itself", _INSTEAD)


class _NamedSFTTrainer(Resumable, SavesOwnAdapter, NamedCard, SFTTrainer):  # type: ignore[misc]
    """TRL's `SFTTrainer`, whose cards name real models, and whose checkpoints hold all that resuming needs."""


def sft_trainer(
    model: Any,
    tokenizer: Any,
    encoded: Any,
    args: SFTConfig,
    *,
    peft_config: Any = None,
    reference_folder: Path | None = None,
    fractions: Sequence[float] = (),
    ema_decay: float | None = None,
    callbacks: Sequence[Any] = (),
) -> SFTTrainer:
    """An `SFTTrainer` over demonstrations that were tokenised before.

    Args:
        model: causal LM to train.
        tokenizer: its tokenizer.
        encoded: `datasets.Dataset` with `input_ids` and `completion_mask` (1 = action, EOS included).
        args: TRL's arguments; `completion_only_loss` is set here.
        peft_config: train this adapter instead of the weights.
        reference_folder: where reference checkpoints go.
        fractions: shares of the samples, each in (0, 1), after which one is kept.
        ema_decay: also keep an exponential moving average of the weights, as the reference `ema`; None for none.
        callbacks: further callbacks.

    Raises:
        ConfigError: a fraction or decay outside (0, 1), several active adapters, or a configuration that TRL or PEFT
            refuses.
    """
    names: Mapping[str, float] = {reference_name(fraction): fraction for fraction in fractions if fraction != 0}
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ConfigError(f"reference fraction {fraction} must lie in [0, 1): 1 is the SFT model itself")
    check_sft_arguments(args)
    check_token(args)
    check_optimization(args)
    if isinstance(model, PeftModel):
        own_adapter(model)
    args.completion_only_loss = True
    disable_dropout(model)
    with refusing("SFT cannot begin"), adapters_kept(model):
        trainer = with_adapted_heads(_NamedSFTTrainer)(
            model=model,
            args=args,
            train_dataset=encoded,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=list(callbacks),
        )
    check_evaluation(trainer)
    adapters_in_float32(trainer.model)
    disable_dropout(trainer.model)  # that of a new adapter too
    add_packed_forward(trainer.model)
    if reference_folder is not None:
        if names:
            save = functools.partial(save_model_atomic, trainer, tokenizer)
            trainer.add_callback(ReferenceCheckpointCallback(reference_folder, names, save))
        if ema_decay is not None:
            if _is_sharded(trainer):
                raise ConfigError("an average of the weights (ema) needs them whole: not with FSDP or ZeRO-3")
            write = functools.partial(save_model, trainer, tokenizer)
            trainer.add_callback(EMACallback(reference_folder, ema_decay, write))
    return trainer


def save_model(trainer: Any, tokenizer: Any, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    """Write a trainer's current weights (the active adapter alone under PEFT) and the tokenizer as safetensors.

    Args:
        trainer: any trainer of TRL.
        tokenizer: the model's.
        folder: where to.
        state_dict: the weights, where the model does not hold them whole.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    save = functools.partial(save_own_adapter, model) if isinstance(model, PeftModel) else model.save_pretrained
    save(str(folder), state_dict=state_dict)
    tokenizer.save_pretrained(str(folder))
    record_base(folder)


def save_model_atomic(trainer: Any, tokenizer: Any, folder: Path, record: dict[str, Any]) -> None:
    """`save_model` into a folder that is there whole or not at all, with a record; every process has to call it."""
    state_dict = None
    if _is_sharded(trainer):  # put together from all processes
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():

        def save(path: Path) -> None:
            save_model(trainer, tokenizer, path, state_dict)
            write_card(trainer, path)

        save_folder_atomic(folder, save, record)
    trainer.accelerator.wait_for_everyone()


def _is_sharded(trainer: Any) -> bool:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return bool(trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))


def train_resumable(trainer: Any, output_dir: Path) -> None:
    """Train, from the last whole checkpoint under `output_dir` if there is one, keeping metrics.jsonl there.

    The caller saves the model next: after the last step there is no checkpoint.

    The end is that of a training that was never interrupted: weights, metrics, and the count of tokens.
    """
    make_folder(output_dir)
    sync_name(output_dir)  # the trainer may have made it
    metrics = MetricsCallback(output_dir / LOG)
    trainer.add_callback(metrics)
    trainer.add_callback(CompleteCheckpointCallback(lambda: trainer._total_train_tokens))
    trainer.add_callback(NoLastCheckpoint())
    with trainer.args.main_process_first(local=False):  # it removes what a kill cut short
        checkpoint = last_complete_checkpoint(output_dir)
        if trainer.is_world_process_zero():
            metrics.go_on_from(checkpoint)
    if checkpoint is not None:
        trainer._total_train_tokens = read_json(Path(checkpoint) / COMPLETE_MARKER)["tokens"]
    trainer.train(resume_from_checkpoint=checkpoint)
