"""Scoring a model whose weights no process holds whole: FSDP2 and DeepSpeed ZeRO-3.

Sharded weights are put together by hooks on the model's `forward`. So the packed passes of `score_completions` run
inside of one call of it, and every process makes the same number of them: a pass more on one would wait for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import maybe_gather_lm_head_ctx

from densepath.core.heads import Head
from densepath.core.logprobs import TokenScores
from densepath.errors import ConfigError
from densepath.models.compat import in_mode
from densepath.models.logits import causal_lm, layout_of, plain_head, score_positions
from densepath.models.packing import Layout, pack

T = TypeVar("T")


def shard_frozen(model: nn.Module, accelerator: Accelerator) -> Any:
    """A frozen model with its weights spread over the processes, as the policy's are.

    Under FSDP2 its numbers stay float32, whatever the policy computes in: bfloat16 adds noise to the reward.

    Args:
        model: on every process; under FSDP2 the first process's weights count.
        accelerator: of the trainer.

    Raises:
        ConfigError: FSDP's first version, which cannot run part of a model.
    """
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
            with _whole(head) as whole:
                scores = score_positions(language_model, batch, batch.predicting(), whole)
            if number < len(batches):
                parts = [torch.split(values.cpu(), list(batch.lengths)) for values in scores]
                for index, *values in zip(batch.sequences, *parts, strict=True):
                    results[index] = TokenScores(*values)

    with in_mode(model):
        inside_forward(model, score)
    return results


@contextlib.contextmanager
def _whole(head: Head | None) -> Iterator[Head | None]:
    """The head with whole weights, for the block."""
    if head is None:
        yield None
        return
    if isinstance(head.weight, DTensor):
        bias = head.bias.full_tensor() if isinstance(head.bias, DTensor) else head.bias
        head = head._replace(weight=head.weight.full_tensor(), bias=bias)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):
        yield head
