"""Scoring a model whose weights no process holds whole: FSDP2 and DeepSpeed ZeRO-3.

Sharded weights are put together by hooks on the model's `forward`. So the packed passes of `score_completions` run
inside of one call of it, and every process makes the same number of them: a pass more on one would wait for ever.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from transformers.integrations import deepspeed
from trl.models.utils import prepare_deepspeed

from densepath.core.logprobs import TokenScores
from densepath.errors import ConfigError
from densepath.models.compat import in_mode
from densepath.models.logits import causal_lm, layout_of, plain_head, score_positions
from densepath.models.packing import Layout, pack

T = TypeVar("T")


def is_in_pieces(model: Any) -> bool:
    """Whether DeepSpeed ZeRO-3 loaded the model in parts, and no engine stands around it yet to join them."""
    loaded = any(hasattr(weight, "ds_id") for weight in model.parameters())
    return loaded and not hasattr(model, "ds_inflight_param_registry")  # which an engine sets


@contextlib.contextmanager
def loaded_whole() -> Iterator[None]:
    """Inside, models come whole in the process that loads them, though ZeRO-3 has every process load its own part."""
    known = deepspeed._hf_deepspeed_config_weak_ref
    config = None if known is None else known()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def copy_of(model: Any) -> Any:
    """A copy of a model, also of one in pieces, of which each process copies its own."""
    if not is_in_pieces(model):
        return copy.deepcopy(model)
    copied = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    source: dict[str, Any] = dict(model.named_parameters())
    weights: dict[str, Any] = dict(copied.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.ds_tensor.copy_(source[name].ds_tensor)
        for name, buffer in copied.named_buffers():
            buffer.copy_(model.get_buffer(name))
    return copied


def shard_frozen(model: nn.Module, accelerator: Accelerator) -> Any:
    """A frozen model with its weights spread over the processes, as the policy's are.

    Under FSDP2 its numbers stay float32, whatever the policy computes in: bfloat16 adds noise to the reward.

    Args:
        model: on every process; under FSDP2 the first process's weights count.
        accelerator: of the trainer.

    Raises:
        ConfigError: FSDP's first version, which cannot run part of a model.
    """
    if not is_in_pieces(model):
        layout_of(model)  # tried while the weights are whole
    if accelerator.distributed_type == "DEEPSPEED":
        return prepare_deepspeed(model, accelerator).module
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError("DPR needs FSDP2: set fsdp_version: 2 in the accelerate configuration (recipes/accelerate)")
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    policy, plugin.mixed_precision_policy = plugin.mixed_precision_policy, None
    try:
        return fsdp2_prepare_model(accelerator, model).eval()
    finally:
        plugin.mixed_precision_policy = policy


def inside_forward(model: nn.Module, function: Callable[[], T]) -> T:
    """Run a function inside of one call of the model's forward, so that its hooks put sharded weights together."""
    inner = model.__dict__.get("forward")

    def redirected(*args: Any, **kwargs: Any) -> T:
        restore()  # what the function calls may be this forward
        return function()

    def restore() -> None:
        if inner is None:
            model.__dict__.pop("forward", None)
        else:
            model.__dict__["forward"] = inner

    model.__dict__["forward"] = redirected
    try:
        result: T = model()
        return result
    finally:
        restore()


@torch.no_grad()
def score_sharded(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    token_budget: int,
) -> list[TokenScores]:
    """Scores of the completions under a sharded model; every process has to call it, each with its own completions.

    Args:
        model: causal LM or the PEFT model around it, sharded.
        prompt_ids: ids of each prompt, not empty.
        completion_ids: ids of each completion, EOS included.
        token_budget: tokens in one forward pass.
    """
    language_model = causal_lm(model)
    device = next(model.parameters()).device
    empty = torch.zeros(0)
    results = [TokenScores(empty, empty, empty, empty.bool())] * len(prompt_ids)

    def score() -> None:
        layout, head = layout_of(language_model), plain_head(language_model)
        batches = list(pack(prompt_ids, completion_ids, layout, token_budget=token_budget))
        # scored again by a process that has fewer, to keep step
        spare = batches[-1:] or list(pack([[0]], [[0]], Layout.ALONE))
        passes = torch.tensor(len(batches), device=device)
        torch.distributed.all_reduce(passes, op=torch.distributed.ReduceOp.MAX)
        for number in range(int(passes)):
            batch = (batches[number] if number < len(batches) else spare[0]).to(device)
            scores = score_positions(language_model, batch, batch.predicting(), head)
            if number < len(batches):
                parts = [torch.split(values.cpu(), list(batch.lengths)) for values in scores]
                for index, *values in zip(batch.sequences, *parts, strict=True):
                    results[index] = TokenScores(*values)

    with in_mode(model):
        inside_forward(model, score)
    return results
