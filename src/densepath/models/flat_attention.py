"""Attention over a flat row, segment by segment: each over its context and itself, by transformers' own interface.

While `attending` is on, a model's attention layers find this module's function under the name that their configuration
gives (`AttentionInterface`), and what they get for a mask are the segments of the row, with what each of them sees.
What a layer sees of its past (all, a sliding window, a chunk) is asked of the very function that transformers
makes its mask of. On a GPU, torch's attention over sequences of several lengths takes all segments at once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as dropped
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from densepath.models.packing import Segment, Spans, cut

varlen_attn: Callable[..., Any] | None = None
with contextlib.suppress(ImportError):  # before torch 2.10; `_works` asks what there is of it
    from torch.nn.attention.varlen import varlen_attn

NAME = "densepath_flat"
_BLOCK = 512
"""Queries that share a mask: no mask grows with the square of a sequence."""
_UNKNOWN = ("position_bias", "s_aux", "head_mask")
"""Arguments of an attention layer that change its result in a way that is not computed here."""
_known: dict[tuple[Any, ...], bool] = {}
_row: ContextVar[tuple[Segment, ...]] = ContextVar("_row")
Sees = Callable[[int, int, Tensor, Tensor], Tensor]
"""(batch, head, position of the query, position of the key) -> bool, as transformers' mask functions are."""


class Beginning:
    """Keys and values of what begins every sequence of several flat rows, kept from the first row for the others.

    Attributes:
        length: tokens.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._layer = 0

    def restart(self) -> None:
        """A pass begins: layers come in the order in which they came before."""
        self._layer = 0

    def behind(self, key: Tensor, value: Tensor, *, holds: bool) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of a row, with those that are kept before them unless the row holds them."""
        if holds:
            self._kept.append((key[:, :, : self.length].clone(), value[:, :, : self.length].clone()))
            return key, value
        kept = self._kept[self._layer]
        self._layer += 1
        return torch.cat([kept[0], key], dim=2), torch.cat([kept[1], value], dim=2)


_beginning: ContextVar[Beginning | None] = ContextVar("_beginning", default=None)


class _Part(NamedTuple):
    """One call of the attention kernel: columns of queries and keys, and the mask; without one attention is causal."""

    queries: Spans
    keys: Spans
    mask: Tensor | None


class FlatMask:
    """What stands for a mask in a flat row.

    Attributes:
        causal: each segment sees all of its past.
        segments: of the row.
        device: of the row.
        before: tokens of a kept beginning, which the row continues and does not hold.
    """

    def __init__(self, segments: tuple[Segment, ...], sees: Sees, device: torch.device) -> None:
        longest = max(_width(segment) for segment in segments)
        everything = torch.arange(longest, device=device)
        self.segments, self.device = segments, device
        self.before = max(0, *(-start for segment in segments for start, _ in segment.context), 0)
        self.causal = bool(sees(0, 0, everything[-1:], everything).all())
        self._sees = sees

    @functools.cached_property
    def parts(self) -> list[_Part]:
        """Calls of the kernel in the order of the row's columns; one call for all segments reads none of them."""
        return [part for segment in self.segments for part in _parts(segment, self._sees, self.causal, self.device)]

    @functools.cached_property
    def lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Places of the keys of all segments (keys,), and int32 running sums of the numbers of queries and keys."""
        columns = [torch.arange(*span, device=self.device) for s in self.segments for span in (*s.context, s[:2])]
        sums = [0, *(s.stop - s.start for s in self.segments)], [0, *map(_width, self.segments)]
        queries, keys = (torch.tensor(each, device=self.device).cumsum(0).int() for each in sums)
        return torch.cat(columns) + self.before, queries, keys


def _width(segment: Segment) -> int:
    """Tokens that the last token of a segment has with its past."""
    return sum(stop - start for start, stop in (*segment.context, segment[:2]))


def _parts(segment: Segment, sees: Sees, causal: bool, device: torch.device) -> Iterator[_Part]:
    spans: Spans = (*segment.context, (segment.start, segment.stop))
    if causal and not segment.context:
        yield _Part(spans, spans, None)
        return
    length = _width(segment)
    for first in range(length - (segment.stop - segment.start), length, _BLOCK):
        queries = torch.arange(first, min(first + _BLOCK, length), device=device)
        mask = sees(0, 0, queries[:, None], torch.arange(int(queries[-1]) + 1, device=device)[None])
        seen = mask.any(0).nonzero()
        since = int(seen[0])
        yield _Part(cut(spans, first, first + len(queries)), cut(spans, since, mask.shape[1]), mask[:, since:])


def flat_mask(*, mask_function: Sees, device: torch.device, use_vmap: bool = False, **given: Any) -> FlatMask:
    """What transformers asks a mask of: the segments of the row that is being computed.

    Raises:
        TypeError: the model lays another mask over its own, which may ask for places in the row.
    """
    if use_vmap:
        raise TypeError("a mask over the model's own")
    return FlatMask(_row.get(), mask_function, device)


def flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: FlatMask,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """`softmax(cap(scaling q k^T)) v` of each segment over its context and itself.

    Args:
        module: the attention layer.
        query: (1, heads, width, head width).
        key: (1, key heads, width, head width).
        value: likewise.
        attention_mask: what `flat_mask` gave.
        dropout: share of attention weights that are dropped.
        scaling: of the scores; the root of the head width divides them if None.
        softcap: `softcap tanh(score / softcap)`.
        given: what else a layer hands over; windows are in the mask.

    Returns:
        (1, width, heads, head width), and None for the weights.

    Raises:
        TypeError: the layer made a mask of its own, or does more than is computed here.
    """
    if not isinstance(attention_mask, FlatMask) or any(given.get(name) is not None for name in _UNKNOWN):
        raise TypeError(f"{type(module).__name__} does not take its mask from transformers")
    beginning = _beginning.get()
    if beginning is not None:
        key, value = beginning.behind(key, value, holds=not attention_mask.before)
    if _takes_lengths(query, value) and attention_mask.causal and softcap is None and not dropout:
        return _by_lengths(query, key, value, attention_mask, scaling), None
    found = []
    for queries, keys, mask in attention_mask.parts:
        keys = tuple((start + attention_mask.before, stop + attention_mask.before) for start, stop in keys)
        states = _taken(query, queries), _taken(key, keys), _taken(value, keys)
        found.append(_attended(*states, mask, scale=scaling, softcap=softcap, dropout=dropout).transpose(1, 2))
    return torch.cat(found, dim=1), None


def _taken(states: Tensor, spans: Spans) -> Tensor:
    if len(spans) == 1:
        return states[:, :, slice(*spans[0])]
    return torch.cat([states[:, :, slice(*span)] for span in spans], dim=2)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
    if grouped:
        key, value = (_for_heads(query.shape[1], each) for each in (key, value))
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return dropped(weights, dropout) @ value


def _for_heads(heads: int, states: Tensor) -> Tensor:
    """Keys or values (.., key heads, ..), each as often as query heads share it."""
    return states.repeat_interleave(heads // states.shape[1], dim=1)


def _takes_lengths(query: Tensor, value: Tensor) -> bool:
    width = query.shape[-1]
    return in_one_call(query) and width == value.shape[-1] and width <= 256 and width % 8 == 0


def in_one_call(states: Tensor) -> bool:
    """Whether torch's attention over sequences of several lengths is there for a tensor's device and type."""
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    return varlen_attn is not None and half and _works(varlen_attn, states.device, dtype)


# A compiler's trace would find the kernel's fake on every device.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _works(kernel: Callable[..., Any], device: torch.device, dtype: torch.dtype, **more: bool) -> bool:
    """Whether a kernel takes what is asked of it: torch before 2.11 has no window, a CPU or an old GPU no kernel.

    A model's trial need not come to it: weights in float32 do so in training alone, under autocast.

    Raises:
        OutOfMemoryError: it says nothing of the kernel, and is not kept.
    """
    asked = kernel, device, dtype, *more
    if asked not in _known:
        states, sums = torch.zeros(1, 1, 8, device=device, dtype=dtype), torch.arange(2, device=device).int()
        try:
            kernel(states, states, states, sums, sums, 1, 1, scale=None, window_size=(-1, 0), **more)
            _known[asked] = True
        except torch.OutOfMemoryError:
            raise
        except (TypeError, RuntimeError):
            _known[asked] = False
    return _known[asked]


def _by_lengths(query: Tensor, key: Tensor, value: Tensor, mask: FlatMask, scaling: float | None) -> Tensor:
    """All segments in one call: keys are laid out segment by segment, those of a context once for each that has it."""
    columns, queries, keys = mask.lengths
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (each.to(torch.get_autocast_dtype(query.device.type)) for each in (query, key, value))
    key, value = (each[0].transpose(0, 1)[columns] for each in (key, value))
    widest = max(s.stop - s.start for s in mask.segments), max(map(_width, mask.segments))
    assert varlen_attn is not None
    causal: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}
    if query.shape[1] != key.shape[1]:
        if _works(varlen_attn, query.device, query.dtype, enable_gqa=True):  # since torch 2.12
            causal["enable_gqa"] = True
        else:
            key, value = (_for_heads(query.shape[1], each) for each in (key, value))
    found: Tensor = varlen_attn(query[0].transpose(0, 1), key, value, queries, keys, *widest, **causal)
    return found.unsqueeze(0)


@contextlib.contextmanager
def attending(model: nn.Module, segments: tuple[Segment, ...], beginning: Beginning | None = None) -> Iterator[None]:
    """Compute the attention of a flat row in the block, and wherever a layer of it is computed again.

    Args:
        model: whose layers read the row.
        segments: of the row; nothing changes without any.
        beginning: what the rows of a call begin with, kept from the first of them; not where gradients are taken.
    """
    if not segments:
        yield
        return
    found = [getattr(module, "config", None) for module in model.modules()]
    configs = list({id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values())
    again: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    checkpoints = [m._gradient_checkpointing_func for m in again]
    token, kept = _row.set(segments), _beginning.set(beginning)
    if beginning is not None:
        beginning.restart()
    for module, checkpoint in zip(again, checkpoints, strict=True):
        module._gradient_checkpointing_func = functools.partial(_checkpointed, checkpoint, configs)
    try:
        with _named(configs):
            yield
    finally:
        _row.reset(token)
        _beginning.reset(kept)
        for module, checkpoint in zip(again, checkpoints, strict=True):
            module._gradient_checkpointing_func = checkpoint


def _checkpointed(checkpoint: Callable[..., Any], configs: Sequence[PreTrainedConfig], layer: Any, *args: Any) -> Any:
    """A layer that finds this module's attention again when the backward pass computes it a second time."""

    def computed(*args: Any) -> Any:
        with _named(configs):
            return layer(*args)

    return checkpoint(computed, *args)


@contextlib.contextmanager
def _named(configs: Sequence[PreTrainedConfig]) -> Iterator[None]:
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


AttentionInterface.register(NAME, flat_attention)
AttentionMaskInterface.register(NAME, flat_mask)
