"""Losses of the whole distribution at each state: a language-model head applied to a chunk of hidden states at a time.

Log-probabilities over the vocabulary exist for one chunk only, in float32 or better, and the gradient of a chunk's
loss is taken while they exist. So a head is applied once per token in training, and (tokens, vocabulary) never lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from densepath.core.logprobs import lift

CHUNK_ELEMENTS = 2**23
"""Least number of log-probabilities in a chunk: 32 MiB in float32, of which about ten such tensors live at a time.

Not less on purpose: glibc takes tensors from 32 MiB on from the kernel and gives them back. Smaller ones would leave
holes in its heap, between activations that stay (measured: a tenth of a run's memory, docs/log.md)."""


class Head(NamedTuple):
    """A language-model head: `logits = softcap(scale (hidden @ weight.T + bias))`.

    Attributes:
        weight: (vocabulary, width) float.
        bias: (vocabulary,) float or None.
        scale: factor on the logits (Cohere, Granite).
        softcap: final logit soft-capping (Gemma 2), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def lifted(self) -> Head:
        """The same head with half-precision weights in float32."""
        return self._replace(weight=lift(self.weight), bias=None if self.bias is None else lift(self.bias))


def head_logprobs(hidden: Tensor, head: Head) -> Tensor:
    """Log-probabilities over the vocabulary: `log_softmax(logits)`; autocast does not reach it.

    Args:
        hidden: (tokens, width) float, last hidden states.
        head: the head.

    Returns:
        (tokens, vocabulary) float32 (float64 for float64 weights), nats.
    """
    head = head.lifted()
    return _logprobs(_projected(hidden, head), head)


def _projected(hidden: Tensor, head: Head) -> Tensor:
    """(tokens, vocabulary) `hidden @ weight.T + bias` in the type of a lifted head."""
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)


def _logprobs(logits: Tensor, head: Head) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        if head.scale != 1.0:
            logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return torch.log_softmax(logits, dim=-1)


def default_chunk_tokens(vocabulary: int) -> int:
    """Tokens of a chunk of `CHUNK_ELEMENTS` log-probabilities: `ceil(2^23 / vocabulary)`."""
    return -(-CHUNK_ELEMENTS // vocabulary)


def token_chunks(tokens: int, vocabulary: int, chunk_tokens: int | None = None) -> Iterator[slice]:
    """Slices of at most `chunk_tokens` that cover all tokens; by default `default_chunk_tokens` of the vocabulary."""
    size = default_chunk_tokens(vocabulary) if chunk_tokens is None else chunk_tokens
    if size < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(log-probabilities of a chunk (tokens, vocabulary), its slice of the tokens) -> (scalar loss, (values, tokens))."""


def chunked_loss(
    function: ChunkLoss, hidden: Tensor, head: Head, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of a loss over chunks of tokens: `sum_c function(log pi(.|s_c), c)`, with gradients to hidden and head.

    Each chunk's gradient is taken at once (the sum is linear in the chunks), so nothing of a chunk is kept for the
    backward pass, which runs once, and no head is applied a second time there.

    Args:
        function: the loss of a chunk, differentiable in the log-probabilities, and values of its tokens to hand back.
        hidden: (tokens, width) float, last hidden states, at least one token.
        head: the policy's head.
        chunk_tokens: tokens projected at once; the result does not depend on it.

    Returns:
        Scalar loss; (values, tokens) of all chunks, without gradient.
    """
    if hidden.dim() != 2 or not len(hidden):
        raise ValueError(f"hidden must be (tokens, width) with at least one token, got {tuple(hidden.shape)}")
    loss, values = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head, function, chunk_tokens, torch.is_grad_enabled()
    )
    return loss, values


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        function: ChunkLoss,
        chunk_tokens: int | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        wants = [with_gradient and need for need in ctx.needs_input_grad[:3]]
        lifted = head._replace(weight=weight.detach(), bias=None if bias is None else bias.detach()).lifted()
        of_hidden = torch.empty_like(hidden) if wants[0] else None
        of_weight = torch.zeros_like(lifted.weight) if wants[1] else None
        of_bias = torch.zeros_like(lifted.bias) if wants[2] and lifted.bias is not None else None
        losses, values = [], []
        for chunk in token_chunks(len(hidden), len(weight), chunk_tokens):
            with torch.set_grad_enabled(any(wants)):
                logits = _projected(hidden[chunk].detach().requires_grad_(any(wants)), lifted)
                edge = get_gradient_edge(logits) if any(wants) else None
                logits = _logprobs(logits, lifted)  # the raw ones are freed: their gradient needs the edge alone
                loss, found = function(logits, chunk)
            losses.append(loss.detach())
            values.append(found.detach())
            del logits
            if edge is None:
                continue
            (by_logits,) = torch.autograd.grad(loss, [edge])
            del loss  # and with it the graph, before the products
            if of_hidden is not None:
                of_hidden[chunk] = by_logits @ lifted.weight
            if of_weight is not None:
                of_weight.addmm_(by_logits.T, hidden[chunk].to(by_logits.dtype))
            if of_bias is not None:
                of_bias += by_logits.sum(dim=0)
        ctx.gradients = of_hidden, of_weight, of_bias
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
        joined = torch.cat(values, dim=1)
        ctx.mark_non_differentiable(joined)
        return torch.stack(losses).sum(), joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of chunked_loss was used up by the backward pass before")
        scaled = [
            None if gradient is None else gradient.mul_(upstream[0]).to(dtype)  # in place: they are large
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*scaled, None, None, None, None)
