"""Products of float32 matrices on a CPU, through whichever of torch's two libraries was chosen for this process.

torch multiplies with its BLAS (MKL on x86), and MKL takes another vendor's processor for an old one: on some it
reaches less than half of what oneDNN, which torch brings as well, does. `models.linear` tries both and chooses;
what is not float32 on a CPU goes to torch as ever.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

LEAST_WORK = 2**21
"""Multiplications from which oneDNN is asked: its call costs 25 microseconds more (measured), a tenth of these."""
_SLAB_ELEMENTS = 2**20
"""Numbers of a sum of products that exist beside it at a time: 4 MiB."""


class Library(str, Enum):
    """Who multiplies."""

    BLAS = "MKL" if torch.backends.mkl.is_available() else "BLAS"  # type: ignore[no-untyped-call]
    ONEDNN = "oneDNN"


_in_use = Library.BLAS


def use(library: Library) -> None:
    """Multiply through `library` from here on, in the whole process."""
    global _in_use
    _in_use = library


def in_use() -> Library:
    """The library that was chosen; BLAS unless another was."""
    return _in_use


def has_onednn() -> bool:
    """Whether this build of torch can multiply dense float32 matrices through oneDNN."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *, buffer: Tensor | None = None) -> Tensor:
    """`inputs @ weight.T + bias`, as `torch.nn.functional.linear`, with gradients of any order.

    Args:
        inputs: (..., width) any dtype and device, as `weight`.
        weight: (out, width).
        bias: (out,) or None.
        buffer: (rows, out) memory that the result of a 2-D product without gradient may take.
    """
    if _takes(inputs, weight, bias):
        if not _needs_gradient(inputs, weight, bias):
            return onednn_linear(inputs, weight, bias)
        return _Linear.apply(inputs, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    if buffer is not None:
        product = torch.mm(inputs, weight.t(), out=buffer)
        return product if bias is None else product.add_(bias)
    return nn.functional.linear(inputs, weight, bias)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`: (rows, width) times (width, columns), with gradients of any order."""
    return linear(left, right.t())


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`total += left @ right` in place, without gradient; nothing of the size of `total` exists beside it.

    Args:
        total: (rows, columns).
        left: (rows, width).
        right: (width, columns).
    """
    if not _takes(left, right.t(), None) or total.dtype != left.dtype:
        return total.addmm_(left, right)
    size = max(1, _SLAB_ELEMENTS // total.shape[1])
    for start in range(0, len(total), size):
        total[start : start + size] += matmul(left[start : start + size], right)
    return total


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` through oneDNN whatever was chosen, without gradient; has_onednn() must hold."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")
    return found


def _takes(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN was chosen, and this product is one for it: dense float32 on a CPU, and large enough."""
    if _in_use is not Library.ONEDNN or weight.dim() != 2 or inputs.numel() * weight.shape[0] < LEAST_WORK:
        return False
    for tensor in (inputs, weight) if bias is None else (inputs, weight, bias):
        plain = type(tensor) is Tensor or type(tensor) is nn.Parameter  # not one spread over processes, or quantised
        if not plain or tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass multiplies through the same library; differentiable again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_inputs, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(inputs if of_weight else None, weight if of_inputs else None)  # no more than torch keeps
        return onednn_linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        rows = upstream[0].reshape(-1, upstream[0].shape[-1])
        of_inputs = None if weight is None else linear(upstream[0], weight.t())
        of_weight = None if inputs is None else matmul(rows.t(), inputs.reshape(-1, inputs.shape[-1]))
        return of_inputs, of_weight, rows.sum(dim=0) if ctx.needs_input_grad[2] else None
