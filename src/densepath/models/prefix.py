"""A beginning that all prompts of a call share (a chat template's system turn, few-shot examples), computed once.

Its keys and values are kept, and every packed batch attends to them. A batch then needs a mask of its own width times
that of all it sees, so only rows that are short beside the beginning are scored so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from densepath.models.decoding import cache_argument
from densepath.models.packing import PackedBatch

LEAST_SAVED = 1 / 8
"""Share of all tokens that a beginning must save to be worth a pass of its own and wider masks (measured on a CPU)."""
_MASK_COST = 7.0
"""A row of w tokens is scored so if w^2 <= 7 x hidden width x tokens of the beginning. Beyond, attention under a mask
costs more than the causal kernel would on the beginning as well (measured on a CPU)."""


class _FixedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the beginning, for any number of rows; what comes behind them is not kept."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Those of the beginning and the given ones."""
        rows = key_states.shape[0]
        keys, values = (kept.expand(rows, -1, -1, -1) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@dataclass(frozen=True)
class SharedPrefix:
    """Tokens that begin every prompt, and what a model keeps of them.

    Attributes:
        length: number of tokens.
        cache: their keys and values in each layer, one row.
        argument: under which the model's forward pass takes the cache.
    """

    length: int
    cache: Cache
    argument: str

    def inputs(self, batch: PackedBatch) -> dict[str, Any]:
        """Arguments of the model's forward pass for a batch of what comes behind the beginning."""
        mask = batch.attention_mask
        if mask is not None:
            mask = torch.cat([mask.new_ones(*mask.shape[:-1], self.length), mask], dim=-1)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": mask,
            "position_ids": batch.position_ids + self.length,
            self.argument: self.cache,
        }


def common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Ids that begin every prompt; at least one id of each is left over."""
    ordered = sorted(map(tuple, prompts))
    shortest = min(map(len, ordered), default=0) - 1
    shared: list[int] = []
    if ordered:  # the first and the last in order differ soonest
        for one, other in zip(ordered[0][: max(shortest, 0)], ordered[-1], strict=False):
            if one != other:
                break
            shared.append(one)
    return shared


def longest_row(hidden_width: int, prefix_length: int) -> int:
    """Tokens of a sequence up to which it is scored behind the kept beginning."""
    return math.isqrt(int(_MASK_COST * hidden_width * prefix_length))


def compute_prefix(model: Any, ids: Sequence[int]) -> SharedPrefix:
    """Run the beginning through the model once.

    Raises:
        TypeError: the model keeps something else than keys and values of full attention.
    """
    argument = cache_argument(model.base_model)
    if argument is None:
        raise TypeError("no cache")
    device = model.get_input_embeddings().weight.device
    cache = DynamicCache(config=model.config.get_text_config())
    model.base_model(
        input_ids=torch.tensor([list(ids)], device=device),
        position_ids=torch.arange(len(ids), device=device).unsqueeze(0),
        use_cache=True,
        **{argument: cache},
    )
    layers = []
    for kept in cache.layers:
        if type(kept) is not DynamicLayer:
            raise TypeError(f"a cache of {type(kept).__name__}")
        layer = _FixedLayer()
        layer.lazy_initialization(kept.keys, kept.values)
        layer.keys, layer.values = kept.keys, kept.values
        layers.append(layer)
    return SharedPrefix(len(ids), Cache(layers=layers), argument)
