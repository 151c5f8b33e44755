"""Weights of linear layers laid out once as a product reads them, for a call that reads them at every token.

A batch of few rows reads all weights for little arithmetic, and a library that multiplies by a plain matrix lays it
out again each time. Through oneDNN's own layout 8 rows take half the time, 256 rows four fifths (measured).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from densepath.core.products import has_onednn, onednn_linear

LEAST_STEPS = 16
"""Tokens of each row from which it pays to lay the weights out, which costs as much as about six steps (measured)."""
_LEAST_ELEMENTS = 2**16
"""Numbers of a weight that is laid out: below, the call costs more than the product."""
_FOR_ROWS = 16
"""What the layout is asked for; that for 16 rows is right for any number (measured), that for one is not."""


@contextlib.contextmanager
def prepacked(models: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, products without gradient of dense float32 layers on an x86 CPU read laid-out copies of the weights.

    The copies take the memory of these weights once more until the end, and do not see weights that change meanwhile.
    Layers that compute in a way of their own (adapters, hooks of accelerate, quantisation) keep it, above a layer
    that is laid out; a compiled model is left alone.

    Args:
        models: each layer is laid out once, however many of them share it.
    """
    layers = {id(layer): layer for model in models for layer in _layers(model)} if _can_pack() else {}
    try:
        for layer in layers.values():
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _FOR_ROWS)
            layer.forward = functools.partial(_forward, layer.weight, layer.bias, packed)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def _forward(weight: Tensor, bias: Tensor | None, packed: Tensor, input: Tensor) -> Tensor:
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or input.dtype is not torch.float32:
        return nn.functional.linear(input, weight, bias)
    return onednn_linear(input, packed, bias)


def _layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The layers of a model whose forward pass is a linear layer's and whose weight is whole."""
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        return
    for layer in model.modules():
        if type(layer) is not nn.Linear or "forward" in vars(layer):
            continue
        weight = layer.weight
        whole = type(weight) is nn.Parameter and not hasattr(weight, "ds_id")  # as DeepSpeed marks what it spreads
        if (
            whole
            and weight.dtype is torch.float32
            and weight.device.type == "cpu"
            and weight.numel() >= _LEAST_ELEMENTS
        ):
            yield layer


@functools.cache
def _can_pack() -> bool:
    """Whether this processor gains by it, and the operators, which torch keeps private, still do what they did."""
    if not has_onednn() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    try:
        numbers = torch.arange(96 * 64) % 7 - 3.0
        inputs, weight, bias = numbers[: 3 * 64].view(3, 64), numbers.view(96, 64), numbers[:96]
        with torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _FOR_ROWS)
            found = onednn_linear(inputs, packed, bias)
        return torch.allclose(found, nn.functional.linear(inputs, weight, bias), rtol=1e-4, atol=1e-4)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
