"""What stands between TRL's `GRPOTrainer` and DPR: arguments, prompts, the stop at NaN, what a checkpoint holds.

Prompts get the ids that SFT trained on, and a checkpoint the generation that is still in use.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from densepath.data.encode import encode_prompt
from densepath.data.rows import template_arguments
from densepath.errors import ResumeError
from densepath.io import atomic_path
from densepath.models.adapters import SavesOwnAdapter
from densepath.models.compat import eos_token_ids
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.model_card import NamedCard
from densepath.trainers.nan_stop import NaNStop, check_finite
from densepath.trainers.refusals import refusing
from densepath.trainers.resuming import Resumable
from densepath.trainers.reward_functions import RewardFunctions
from densepath.trainers.rollout import Rollout, Sampled


@contextlib.contextmanager
def grpo_arguments(args: DPRConfig, functions: RewardFunctions, *, was_named: bool) -> Iterator[None]:
    """The arguments as GRPO's constructor should read them, inside of the block.

    GRPO's own `beta` would load another copy of the model and add a separate KL loss; `reward_weights` needs a number
    for the dense reward too. What TRL and PEFT refuse becomes a `ConfigError`.

    Args:
        args: the run's.
        functions: its reward functions.
        was_named: whether the policy was loaded by its name, with `model_init_kwargs`: TRL, which gets it as a model,
            would say that they are ignored.
    """
    beta, weights = args.beta, args.reward_weights
    alpha = args.dense_reward_weight
    args.beta = 0.0
    args.reward_weights = [alpha, *((1 - alpha) * weight for weight in functions.weights)]
    logger = logging.getLogger(GRPOTrainer.__module__)

    def is_true(record: logging.LogRecord) -> bool:
        return not (was_named and "`model_init_kwargs` will be ignored" in record.getMessage())

    logger.addFilter(is_true)
    try:
        with refusing("DPR cannot begin"):
            yield
    finally:
        logger.removeFilter(is_true)
        args.beta, args.reward_weights = beta, weights


@contextlib.contextmanager
def sampler_type(args: DPRConfig, model: Any) -> Iterator[None]:
    """Inside, a vLLM that TRL starts in this process computes in the type that the policy computes in.

    By itself it takes half precision for weights in float32, whose samples are another policy's. Without an
    accelerator it does not compile, which would take minutes.
    """
    vllm: Any = sys.modules.get("trl.generation.vllm_generation")
    plain = getattr(vllm, "LLM", None)
    if not args.use_vllm or plain is None:
        yield
        return
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
    vllm.LLM = functools.partial(plain, dtype=dtype, enforce_eager=not torch.accelerator.is_available())
    try:
        yield
    finally:
        vllm.LLM = plain


def reload_packed_weights(generation: Any) -> None:
    """Let TRL's vLLM take all new weights at once where it keeps packed copies in their place: on a CPU.

    TRL pushes one weight after the other into the place that each had, which is empty there. On accelerators, and for
    a server, nothing is changed.

    Args:
        generation: TRL's `VLLMGeneration`.
    """
    if torch.accelerator.is_available() or generation.mode != "colocate":
        return

    def sync_weights() -> None:
        runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
        runner.reload_weights(weights_iterator=generation._iter_named_params())
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights


def as_list(given: Any, length: int) -> list[Any]:
    """One or several of something as a list; None stands for `length` times None."""
    if given is None:
        return [None] * length
    return list(given) if isinstance(given, (list, tuple)) else [given]


class ResumableSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's `RepeatSampler`, whose order in an epoch depends on seed and epoch alone.

    TRL draws a new order from one stream each epoch, and a resumed training begins that stream anew: in a later epoch
    it would see the prompts of the first. The orders are TRL's.

    Args:
        epoch: the present epoch, counted from 0.
        others: those of `RepeatSampler`.
    """

    def __init__(self, *args: Any, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of the data set, repeated as TRL does."""
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


class ResumableGRPOTrainer(Resumable, SavesOwnAdapter, NamedCard, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` that reads each row as SFT did, resumes to the bit, and stops at NaN.

    Attributes:
        rollout: the generation batch at hand, as far as it has come; whoever samples and scores sets it.
    """

    chat_template_kwargs: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rollout: Rollout = Sampled()
        self._rows: Sequence[Mapping[str, Any]] = ()
        super().__init__(*args, **kwargs)
        # In place: TRL's generation config holds the same list, with None in it where the tokenizer names no EOS.
        self.eos_token_ids[:] = eos_token_ids(self.accelerator.unwrap_model(self.model), self._tokenizer)
        self._nan_stop = NaNStop(self.args.output_dir, self.accelerator, lambda: self.rollout)
        self.add_callback(self._nan_stop)

    # -- data --------------------------------------------------------------------------------------------------

    def prompt_ids(self, row: Mapping[str, Any]) -> list[int]:
        """Ids that a row of text or turns is asked with: those that SFT trained on and evaluation samples after.

        Args:
            row: with a `prompt`, and what it gives the chat template itself (`tools`, `chat_template_kwargs`).
        """
        given = {"tools": self.tools or None, "chat_template": self.chat_template}
        given = {name: value for name, value in given.items() if value is not None}
        return encode_prompt(
            row["prompt"], self._tokenizer, {**given, **self.chat_template_kwargs, **template_arguments(row)}
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """TRL's, but with each row's own template arguments, and ids from the one place that makes them."""
        if self._is_vlm or self.environment_factories is not None:
            return super()._tokenize_prompts(prompts)  # type: ignore[no-any-return]
        rows = zip(self._rows, prompts, strict=True)
        return [self.prompt_ids({**row, "prompt": prompt}) for row, prompt in rows], None, {}

    def _get_train_sampler(self, dataset: Any = None) -> ResumableSampler:
        """TRL's sampler, which a resumed training continues in a later epoch too."""
        return ResumableSampler(
            self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    # -- the stop at NaN ---------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's, which ends at the first NaN or infinity in sampling, rewards, advantages or loss."""
        micro_batch = self._step % self.args.steps_per_generation

        def tensors() -> dict[str, Tensor]:
            buffered = self._buffered_inputs[micro_batch] if self._buffered_inputs is not None else {}
            return {f"micro_batch.{key}": value for key, value in buffered.items() if isinstance(value, Tensor)}

        with self._nan_stop.watch(self.state.global_step + 1, tensors):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            check_finite("loss", loss, self.accelerator)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers', which ends where the norm is not finite: before the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None:  # with fp16 such steps are skipped on purpose
            with self._nan_stop.watch(self.state.global_step + 1):
                check_finite("gradient norm", torch.as_tensor(norm, device=self.accelerator.device), self.accelerator)
        return norm

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        buffered = self._buffered_inputs or []
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            buffered = []  # the next step generates anew
        tensors: dict[str, Tensor] = {}
        shape = _flatten(buffered, "batch", tensors)
        metadata = {
            "step": str(self._step),
            "processes": str(self.accelerator.num_processes),
            "shape": json.dumps(shape),
        }
        with atomic_path(self._rollout_file(self._checkpoint_folder(trial))) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._rollout_file(Path(checkpoint)).exists():
            return
        # Of a stream an epoch is max_steps long: the last step of its first pass ends at 1.
        if self.state.epoch > 1 and isinstance(self.train_dataset, IterableDataset):
            raise ResumeError(
                f"{checkpoint} is of a later pass over a train_dataset that is streamed, where transformers does not "
                "find its place again: train anew, with a Dataset if it may be interrupted"
            )
        with safe_open(self._rollout_file(Path(checkpoint)), framework="pt") as file:
            metadata = file.metadata()
            if int(metadata["processes"]) != self.accelerator.num_processes:
                raise ResumeError(
                    f"{checkpoint} is of a training with {metadata['processes']} processes, and this one has "
                    f"{self.accelerator.num_processes}: the batches would be others; start as many as before"
                )
            self._step = int(metadata["step"])
            shape = json.loads(metadata["shape"])
            buffered = _restore(shape, lambda name: file.get_tensor(name).to(self.accelerator.device))
        self._buffered_inputs = buffered or None

    def _rollout_file(self, folder: Path) -> Path:
        return folder / f"rollout_{self.accelerator.process_index}.safetensors"


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors of nested lists, tuples and dicts into one dict; returns what JSON can say of the rest."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {key: _flatten(each, f"{name}.{key}", tensors) for key, each in value.items()}}
    if isinstance(value, (list, tuple)):
        parts = [_flatten(each, f"{name}.{index}", tensors) for index, each in enumerate(value)]
        return {type(value).__name__: parts}
    return {"value": value}


def _restore(shape: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The nested value that `_flatten` took apart."""
    ((kind, content),) = shape.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {key: _restore(each, tensor) for key, each in content.items()}
    if kind == "value":
        return content
    parts = [_restore(each, tensor) for each in content]
    return tuple(parts) if kind == "tuple" else parts
