"""How a model's logits are computed so that they are its own: the one place that decides.

Fast scoring runs the layers alone, packed, and applies the language-model head to the states that count. That is
right for a plain head, and for attention that transformers' own interface computes or that takes any mask. Whether a
model is so is not believed of its configuration: the head's structure is looked at on every call (an adapter may come,
go, or be trained), and the rest is tried once, on a few tokens, against the model's own forward pass. What differs is
computed by that forward pass instead.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from densepath.core.heads import Head, chunked_token_logprobs
from densepath.core.logprobs import TokenScores, logit_scores
from densepath.errors import ModelError
from densepath.models.compat import computed_on, embedding_rows, in_mode, is_sharded, predicted_rows
from densepath.models.flat_attention import Beginning, attending, in_one_call
from densepath.models.kinds import once_for_kind
from densepath.models.packing import Layout, PackedBatch, pack

Found = TypeVar("Found")

OWN_LOGITS = 2**26
"""Logits that a scoring pass of a model without a plain head computes at most, unless one sequence has more: 256 MiB
in float32."""
_TOLERANCE = 2e-3
"""Nats by which log-probabilities of a layout may differ from those of sequences alone, in float32."""
_OTHER_KERNELS, _OTHER_PLACE = 1 / 8, 1 / 32
"""The same in half precision, as shares of what another prompt changes, which grows with a model's logits as rounding
does: between the kernels of two layouts, and between two places in a row, where kernels and shapes are the same.

Bounds of our own: right layouts measured up to .05 and .013, wrong ones from .14 or, where they lie below, .16 on.
"""
_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, NotImplementedError)
PASSED_THROUGH = "_densepath_passes_through"
"""Attribute of a forward pass that leaves logits as they are: the one that it calls."""
_WINDOWS = ("window", "attention_chunk", "local_attention")
_MASKED = ("full_attention", "sliding_attention", "chunked_attention")
_MASKED_BY = ("sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size")
"""Kinds of layers that differ by their mask alone, and the settings that name how far it reaches."""


class Scaling(NamedTuple):
    """What a model does to the output of its head: `softcap(scale raw)`."""

    scale: float
    softcap: float | None


@dataclass(frozen=True)
class _Tried:
    """What was found for a head: the module, what the configuration and the model around it were, and the answers."""

    head: Any
    bare: bool
    settings: tuple[Any, ...]
    around: tuple[Any, ...]
    scaling: Scaling | None
    layouts: tuple[Layout, ...]


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, adapters left in place.

    Raises:
        ModelError: an adapter that works in the wrapper's own forward pass (virtual prompt tokens, aLoRA, X-LoRA).
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return model
    for name in getattr(model, "active_adapters", ()):
        config = model.peft_config.get(name)
        kind = str(getattr(getattr(config, "peft_type", ""), "value", ""))
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(f"adapter {name!r} has virtual prompt tokens (prefix or prompt tuning): use LoRA")
        if kind == "XLORA" or getattr(config, "alora_invocation_tokens", None):
            raise ModelError(f"adapter {name!r} changes with the tokens of its input (aLoRA, X-LoRA): use LoRA")
    return model.get_base_model()


@contextlib.contextmanager
def whole_head(head: Head) -> Iterator[Head]:
    """The head with whole weights. Every process calls it, inside of the model's forward.

    Whoever keeps the weights for a backward pass keeps them whole: they are views of what was put together.
    """
    if isinstance(head.weight, DTensor):
        bias = head.bias.full_tensor() if isinstance(head.bias, DTensor) else head.bias
        yield head._replace(weight=head.weight.full_tensor(), bias=bias)
    elif hasattr(head.weight, "ds_id"):
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        parts: list[Any] = [each for each in (head.weight, head.bias) if each is not None]
        missing = [each for each in parts if each.ds_status is not ZeroParamStatus.AVAILABLE]
        with deepspeed.zero.GatheredParameters(missing, enabled=bool(missing)):
            bias = None if head.bias is None else head.bias.view_as(head.bias)
            yield head._replace(weight=head.weight.view_as(head.weight), bias=bias)
    else:
        yield head


def plain_head(model: Any) -> Head | None:
    """The head whose `head_logprobs` of the last hidden states are the model's log-probabilities; None if none is.

    Not so for a head with an adapter (active or not, merged or not), hooks or a parametrisation, a quantised one, one
    with layers of its own, and for logits that the model changes in a way that `Head` does not know.

    Args:
        model: causal LM, PEFT included, as it is used. Sharded, the weight is this process's part.
    """
    model = causal_lm(model)
    tried = _tried(model)
    if tried.scaling is None:
        return None
    head = tried.head
    return Head(head.weight, head.bias, *tried.scaling)


def layout_of(model: Any) -> Layout:
    """How far sequences may share a batch so that their scores stay what the model gives each alone.

    Models with recurrent layers or attention of their own are not packed; the results are the same, only slower. A
    flat row is for processors, and for GPUs whose kernel takes all its segments at once.

    Raises:
        ModelError: the model is not causal: what follows a token changes its prediction.
    """
    model = causal_lm(model)
    weights = model.get_input_embeddings().weight
    flat = weights.device.type == "cpu" or in_one_call(weights)
    return next(layout for layout in _tried(model).layouts if flat or layout is not Layout.FLAT)


def supports_packing(model: Any) -> bool:
    """Whether rows may hold several sequences of this model; see `layout_of`."""
    return layout_of(model) >= Layout.PACKED


def hidden_states(model: Any, batch: PackedBatch, beginning: Beginning | None = None) -> Tensor:
    """(rows, width, hidden width) last hidden states of a packed batch; see `attending` for a beginning."""
    with attending(model, batch.segments, beginning):
        return model.base_model(**model_inputs(batch), use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def own_logits(
    model: Any,
    batch: PackedBatch,
    rows: Tensor,
    columns: Tensor,
    forward: Callable[..., Any] | None = None,
) -> Tensor:
    """(positions, vocabulary) logits of the model's own forward pass, in its dtype.

    Args:
        model: causal LM.
        batch: what it reads.
        rows: (positions,) int64.
        columns: (positions,) int64.
        forward: the forward pass to call; the model's own if None, without the autocast a trainer put around it.
    """
    given = model_inputs(batch)
    kept, places = torch.unique(columns, return_inverse=True)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = kept.to(batch.input_ids.device)
    with attending(model, batch.segments):
        logits: Tensor = (forward or _forward(model))(**given, use_cache=False).logits
    columns = places if logits.shape[1] == len(kept) else columns  # a model may read the argument and ignore it
    return logits[rows.to(logits.device), columns.to(logits.device)]


def score_positions(
    model: Any,
    batch: PackedBatch,
    where: tuple[Tensor, Tensor],
    head: Head | None,
    forward: Callable[..., Any] | None = None,
) -> TokenScores:
    """Scores of the labels at (rows, columns) of a batch: with gradients where they are on.

    Args:
        model: causal LM.
        batch: what it reads, with `labels`.
        where: row and column (positions,) of each.
        head: `plain_head` of the model; None computes its own logits.
        forward: see `own_logits`.
    """
    labels = batch.labels[where]
    if head is None:
        logits = own_logits(model, batch, *where, forward)
        return logit_scores(logits, labels.to(logits.device))
    hidden = hidden_states(model, batch)[where]
    with whole_head(head) as whole:
        return chunked_token_logprobs(hidden, whole, labels)


def own_budget(model: Any, token_budget: int) -> int:
    """Tokens in one pass that computes whole logits, so that there are not more than `OWN_LOGITS` of them."""
    return max(1, min(token_budget, OWN_LOGITS // embedding_rows(model)))


def model_inputs(batch: PackedBatch) -> dict[str, Any]:
    """Arguments of a forward pass. A model counts the positions of rows that are padded on the right itself."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    if batch.attention_mask.dim() == 2 and not batch.segments:
        del given["position_ids"]
    return given


def _forward(model: Any) -> Callable[..., Any]:
    """The model's forward pass in its own precision: accelerate keeps it when it puts autocast around."""
    kept: Callable[..., Any] | None = model.__dict__.get("_original_forward")
    # A sharded model is asked inside of a forward pass, whose hooks have run.
    return kept if kept is not None else model.forward if is_sharded(model) else model


# -- the trial -------------------------------------------------------------------------------------------------


def _tried(model: Any) -> _Tried:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    now = bare, settings, _ = _is_bare(model, head), _settings(model), _around(model)
    known: _Tried | None = getattr(model, "_densepath_tried", None)
    if known is not None and known.head is head and (known.bare, known.settings, known.around) == now:
        return known

    def find() -> tuple[Scaling | None, tuple[Layout, ...]] | None:
        # In the weights' own precision, which bounds what may differ, also where a training pass asks under autocast.
        with in_mode(model), torch.no_grad(), torch.autocast(computed_on(model)[0].type, enabled=False):
            return _try(model, head, bare, settings)

    found = once_for_kind(model, now, find)
    if found is None:
        return _Tried(head, *now, None, (Layout.ALONE,))
    model._densepath_tried = tried = _Tried(head, *now, *found)
    return tried


def _around(model: Any) -> tuple[Any, ...]:
    """What else changes logits: device and precision, the forward pass, hooks, and the numbers of the configuration.

    A model of somebody's own may scale logits by any of them.
    """
    if is_sharded(model):  # its hooks come and go
        return ()
    own = vars(model)
    forward = own.get("_original_forward", own.get("forward"))
    while hasattr(forward, PASSED_THROUGH):  # gives the logits of the one it was put in front of
        forward = getattr(forward, PASSED_THROUGH)
    hooks = (tuple(own[name].values()) for name in ("_forward_hooks", "_forward_pre_hooks"))
    numbers = _numbers(model.config), _numbers(model.config.get_text_config())
    return type(model), computed_on(model), forward, *hooks, *numbers


def _numbers(config: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(config).items()
        if name == "_attn_implementation_internal"
        or (isinstance(value, (int, float)) and not isinstance(value, bool) and not name.endswith("token_id"))
    }


def _is_bare(model: Any, head: Any) -> bool:
    """Whether a head is a linear layer and nothing else: no adapter, hook, parametrisation, quantisation."""
    if is_sharded(model):  # hooks put its weights together
        kind = type(head).__bases__[-1] if isinstance(head, FSDPModule) else type(head)
        return kind is nn.Linear
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return type(head) is nn.Linear and "forward" not in vars(head) and not any(vars(head)[name] for name in hooks)


def _settings(model: Any) -> tuple[Any, ...]:
    """Scales and soft-capping that the configuration names."""
    config = model.config.get_text_config()
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling", "final_logit_softcapping")
    return tuple(getattr(config, name, None) for name in names)


def _scalings(settings: tuple[Any, ...]) -> list[Scaling]:
    """What the configuration may mean; the trial says which it is."""
    *scales, softcap = settings
    numbers = [float(scale) for scale in scales if isinstance(scale, (int, float))]
    tried = [1.0, *numbers, *(1 / number for number in numbers if number)]
    caps = [None] if not softcap else [None, float(softcap)]
    return [Scaling(scale, cap) for scale in tried for cap in caps]


def _try(
    model: Any, head: Any, bare: bool, settings: tuple[Any, ...]
) -> tuple[Scaling | None, tuple[Layout, ...]] | None:
    """What the model's own log-probabilities equal; None where they are NaN, which says nothing that can be kept.

    The layouts end with `ALONE`, the best comes first. On a processor none behind a flat row is tried.
    """
    embeddings = model.get_input_embeddings().weight
    ids = _ids(model)
    sequences = [ids[:4], ids[:4], [*ids[:2], *ids[5:7]]], [ids[4:8], ids[8:11], ids[7:11]]
    own = _try_scores(model, sequences, Layout.ALONE, None)
    if not bool(torch.isfinite(own).all()):
        return None
    _check_causal(model, ids)
    scaling = _scaling(model, head, settings, ids) if bare else None
    plain = None if scaling is None else Head(head.weight, head.bias, *scaling)
    # A model's own half-precision logits are rounded to 2^-8 of their size.
    exact = embeddings.dtype in (torch.float32, torch.float64)
    rounding = _TOLERANCE if exact else 0.25
    alone = attempt(functools.partial(_try_scores, model, sequences, Layout.ALONE, plain))
    if alone is None or not _near(alone, own, rounding):
        alone, plain, scaling = own, None, None
    right: list[Layout] = []
    for layout in _promised(model):
        if attempt(functools.partial(_keeps, model, layout, plain, sequences, alone, exact)):
            right.append(layout)
            if layout is not Layout.FLAT or embeddings.device.type == "cpu":
                break
    return scaling, (*right, Layout.ALONE)


def _try_scores(
    model: Any, sequences: tuple[list[list[int]], list[list[int]]], layout: Layout, head: Head | None
) -> Tensor:
    """Log-probabilities of all completion tokens."""
    found: dict[int, Tensor] = {}
    for batch in pack(*sequences, layout):
        batch = batch.to(model.get_input_embeddings().weight.device)
        scores = score_positions(model, batch, batch.predicting(), head)
        found.update(zip(batch.sequences, torch.split(scores.logprobs, list(batch.lengths)), strict=True))
    return torch.cat([found[index] for index in sorted(found)])


def attempt(function: Callable[[], Found]) -> Found | None:
    """What the function returns, or None where the model does not take its arguments.

    Raises:
        OutOfMemoryError: it says nothing of the model.
    """
    try:
        return function()
    except torch.OutOfMemoryError:
        raise
    except _FAILURES:
        return None


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(torch.allclose(found, expected.to(found), atol=tolerance, rtol=tolerance))


def _keeps(
    model: Any,
    layout: Layout,
    head: Head | None,
    sequences: tuple[list[list[int]], list[list[int]]],
    alone: Tensor,
    exact: bool,
) -> bool:
    """Whether a layout gives the log-probabilities of sequences alone up to rounding.

    Rounding with large logits moves them by more than an error does with small ones. So in half precision one
    completion is also scored before and behind another: what sees that, or counts columns for positions, moves it.
    """

    def scores(prompt: list[int], completions: list[list[int]], layout: Layout) -> Tensor:
        return _try_scores(model, ([prompt] * len(completions), completions), layout, head)[: len(completions[0])]

    found = _try_scores(model, sequences, layout, head)
    if exact:
        return _near(found, alone, _TOLERANCE)
    ids = _ids(model)
    first, before, one, behind = ([start, *ids[at : at + 5]] for at, start in enumerate(sorted(ids)[1::3]))
    own, elsewhere = (scores(prompt, [one], Layout.ALONE) for prompt in (ids[:4], ids[5:9]))
    there, here = (scores(ids[:4], [one, first, neighbour], layout) for neighbour in (before, behind))
    compared = (own, elsewhere), (there, here), (here, own), (found, alone)
    context, places, *kernels = ((one - other).abs().mean() for one, other in compared)
    return bool(places <= _OTHER_PLACE * context) and all(each <= _OTHER_KERNELS * context for each in kernels)


def _ids(model: Any) -> list[int]:
    """Tokens of the trial."""
    return [(7 * k + 3) % predicted_rows(model) for k in range(12)]


def _check_causal(model: Any, ids: list[int]) -> None:
    """Refuse a model whose prediction of a token changes with what follows it."""
    device = model.get_input_embeddings().weight.device
    whole, part = (
        _forward(model)(**_plain_inputs(given, device), use_cache=False).logits[0, :8].float()
        for given in (ids, ids[:8])
    )
    rounding = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.05
    tolerance = rounding * max(1.0, float(part.abs().max()))
    if not torch.allclose(whole.log_softmax(-1), part.log_softmax(-1), atol=tolerance, rtol=0):
        raise ModelError(
            f"{type(model).__name__} is not causal: what follows a token changes its prediction, so the tokens of a "
            "completion have no log-probabilities; load it as a decoder (is_decoder=True), or choose a causal model"
        )


def _plain_inputs(ids: list[int], device: torch.device) -> dict[str, Tensor]:
    inputs = torch.tensor([ids], device=device)
    return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}


def _scaling(model: Any, head: nn.Linear, settings: tuple[Any, ...], ids: list[int]) -> Scaling | None:
    """What the model does to its head's output, if it reads the last hidden states and only scales and caps that.

    The output is replaced by noise, so that the answer does not depend on the weights: those of a head may be zero.
    """
    inputs = _plain_inputs(ids, model.get_input_embeddings().weight.device)
    seen: dict[str, Tensor] = {}

    def noised(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        noise = 20 * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        seen["read"], seen["raw"] = given[0], noise.to(output)
        return seen["raw"]

    def states() -> Tensor:
        return model.base_model(**inputs, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    handle = head.register_forward_hook(noised)
    try:
        logits: Tensor = _forward(model)(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    hidden = attempt(states)
    if hidden is None or "raw" not in seen or seen["raw"].shape != logits.shape or hidden.shape != seen["read"].shape:
        return None
    exact = seen["raw"].dtype in (torch.float32, torch.float64)
    tolerance = 1e-5 if exact else 2**-7
    raw, logits = seen["raw"].double(), logits.double()
    if not torch.allclose(seen["read"].float(), hidden.float(), atol=1e-3 if exact else 0.1, rtol=10 * tolerance):
        return None
    for scaling in _scalings(settings):
        expected = raw * scaling.scale
        if scaling.softcap is not None:
            expected = scaling.softcap * torch.tanh(expected / scaling.softcap)
        if torch.allclose(logits, expected, atol=tolerance * scaling.scale, rtol=tolerance):
            return scaling
    return None


def length_border(model: Any) -> int | None:
    """Tokens beyond which LongRoPE turns all of a sequence by other frequencies, its beginning included."""
    config = causal_lm(model).config.get_text_config()
    for part in _rotary(config):
        if part.get("rope_type", part.get("type")) == "longrope":
            border = getattr(config, "original_max_position_embeddings", None)
            border = border or part.get("original_max_position_embeddings")
            return int(border) if border else None
    return None


def _depends_on_length(model: Any) -> bool:
    """Whether rotary frequencies change with the longest sequence of a batch, far beyond the trial's length."""
    parts = _rotary(model.config.get_text_config())
    return any(part.get("rope_type", part.get("type")) in ("dynamic", "longrope") for part in parts)


def _rotary(config: Any) -> list[dict[str, Any]]:
    found = [getattr(config, name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    return [part for each in found for part in (each, *each.values()) if isinstance(part, dict)]


def _promised(model: Any) -> list[Layout]:
    """Layouts that the configuration does not rule out, where the trial's few tokens could not: the best first."""
    config = model.config.get_text_config()
    if _depends_on_length(model):
        return []
    if is_sharded(model):
        return [Layout.PADDED]
    kinds = set(getattr(config, "layer_types", None) or ())
    # A window that is wider than the trial's tokens cannot be seen there. Those of transformers' own masks are known.
    names = [name for name in vars(config) if any(part in name for part in _WINDOWS) and name not in _MASKED_BY]
    if kinds - {*_MASKED} if kinds else any(getattr(config, name) for name in names):
        return [Layout.PADDED]
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    full = kinds == {"full_attention"} if kinds else not (slides or getattr(config, "attention_chunk_size", None))
    takes_masks = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    return [Layout.FLAT, *([Layout.PACKED] if full and takes_masks else []), Layout.PADDED]
