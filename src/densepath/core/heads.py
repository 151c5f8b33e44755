"""A language-model head applied to a chunk of hidden states at a time: (tokens, vocabulary) never exists whole.

Two ways, since a gradient can be taken while a chunk's distributions exist only if the loss is known by then.
`chunked_loss` is for a loss of whole distributions that is known: the head is applied once per token in training.
`chunked_token_logprobs` is for numbers of chosen tokens whose loss is made elsewhere: its backward projects again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from densepath.core.logprobs import DEFAULT_CHUNK_TOKENS, TokenScores, lift
from densepath.core.products import add_product, linear, matmul

CHUNK_ELEMENTS = 2**23
"""Least number of logits in a chunk: 32 MiB in float32 for each head, in memory that is used for all chunks of a call.

Not less on purpose: glibc takes tensors from 32 MiB on from the kernel and gives them back. Smaller ones would leave
holes in its heap, between activations that stay (measured: a tenth of a run's memory, docs/log.md)."""


TILE_ELEMENTS = {"cpu": 2**20}
"""Logits that are worked on at once, by device type: 4 MiB of float32 stay in a CPU's cache."""
DEFAULT_TILE_ELEMENTS = 2**26
"""The same on a GPU, where few large products are faster than many small ones."""


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

    def shaped(self, logits: Tensor) -> Tensor:
        """The logits of `hidden @ weight.T + bias`: scaled, then capped."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

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
    with torch.autocast(hidden.device.type, enabled=False):
        return _logprobs(linear(hidden.to(head.weight.dtype), head.weight, head.bias), head)


def _logprobs(logits: Tensor, head: Head) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        return torch.log_softmax(head.shaped(logits), dim=-1)


class _Projection:
    """A lifted head without gradient whose logits of each chunk take the memory of those of the chunk before."""

    def __init__(self, head: Head) -> None:
        self.head = head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
        self._memory: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(tokens, vocabulary) `hidden @ weight.T + bias`, valid until the next call; not more tokens than before."""
        weight = self.head.weight
        if self._memory is None:
            self._memory = weight.new_empty(len(hidden), len(weight))
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            given = hidden.detach().to(weight.dtype)
            return linear(given, weight, self.head.bias, buffer=self._memory[: len(hidden)])


def logprobs_in_parts(
    hidden: Sequence[Tensor], heads: Sequence[Head], *, chunk_tokens: int | None = None
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Distributions of several models at the same states, without gradient: a slice of the tokens, and those there.

    Many tokens are projected at once, into memory that is used again, since a product of few reads the whole head.
    Few are handed out at once, so that what is made of them stays in a CPU's cache: larger temporaries come fresh
    from the kernel, which took a third of the time (measured).

    Args:
        hidden: (tokens, width) float of each model.
        heads: of each model, lifted, over one vocabulary.
        chunk_tokens: tokens projected at once.

    Yields:
        A slice, and (its tokens, vocabulary) log-probabilities under each head, nats.
    """
    projections = [_Projection(head) for head in heads]
    for chunk in token_chunks(len(hidden[0]), len(heads[0].weight), chunk_tokens):
        logits = [project(states[chunk]) for project, states in zip(projections, hidden, strict=True)]
        for part, here in _parts(chunk, logits[0]):
            with torch.no_grad():
                found = [_logprobs(each[here], head) for each, head in zip(logits, heads, strict=True)]
            yield part, found
            del found  # before the next are made


def _parts(chunk: slice, logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of all tokens, and of those of a chunk, whose logits have at most `TILE_ELEMENTS` numbers."""
    for here in row_parts(logits[: chunk.stop - chunk.start]):
        yield slice(chunk.start + here.start, chunk.start + here.stop), here


def row_parts(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of (rows, vocabulary) logits that have at most `TILE_ELEMENTS` numbers, or one row."""
    most = max(1, TILE_ELEMENTS.get(logits.device.type, DEFAULT_TILE_ELEMENTS) // logits.shape[1])
    return (slice(start, min(start + most, len(logits))) for start in range(0, len(logits), most))


def default_chunk_tokens(vocabulary: int) -> int:
    """Tokens of a chunk of `CHUNK_ELEMENTS` log-probabilities: `ceil(2^23 / vocabulary)`."""
    return -(-CHUNK_ELEMENTS // vocabulary)


def token_chunks(tokens: int, vocabulary: int, chunk_tokens: int | None = None) -> Iterator[slice]:
    """Slices of at most `chunk_tokens` that cover all tokens; by default `default_chunk_tokens` of the vocabulary."""
    size = default_chunk_tokens(vocabulary) if chunk_tokens is None else chunk_tokens
    if size < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


PartLoss = Callable[..., tuple[Tensor, Tensor]]
"""(log-probabilities of some tokens (tokens, vocabulary), their slice, those of each frozen model)
-> (scalar loss, (values, tokens))."""


def chunked_loss(
    function: PartLoss,
    hidden: Tensor,
    head: Head,
    *,
    frozen: Sequence[tuple[Tensor, Head]] = (),
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of a loss over parts of the tokens: `sum_p function(log pi(.|s_p), p, ...)`, gradients to hidden and head.

    Each part's gradient is taken at once (the sum is linear in the parts) and takes the memory of its logits, so
    nothing is kept for the backward pass, which runs once, and no head is applied a second time there.

    Args:
        function: the loss of some tokens, differentiable in the log-probabilities, and values of them to hand back.
        hidden: (tokens, width) float, last hidden states, at least one token.
        head: the policy's head.
        frozen: (tokens, width) hidden states and lifted heads of other models, whose log-probabilities at the same
            tokens the function is given too.
        chunk_tokens: tokens projected at once; the result does not depend on it.

    Returns:
        Scalar loss; (values, tokens) of all tokens, without gradient.
    """
    if hidden.dim() != 2 or not len(hidden):
        raise ValueError(f"hidden must be (tokens, width) with at least one token, got {tuple(hidden.shape)}")
    loss, values = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head, (function, frozen, chunk_tokens), torch.is_grad_enabled()
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
        asked: tuple[PartLoss, Sequence[tuple[Tensor, Head]], int | None],
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        wants = [with_gradient and need for need in ctx.needs_input_grad[:3]]
        function, frozen, chunk_tokens = asked
        own = _Projection(head._replace(weight=weight, bias=bias).lifted())
        others = [(states, _Projection(other)) for states, other in frozen]
        of_hidden = torch.empty_like(hidden) if wants[0] else None
        of_weight = torch.zeros_like(own.head.weight) if wants[1] else None
        of_bias = torch.zeros_like(own.head.bias) if wants[2] and own.head.bias is not None else None
        losses, values = [], []
        for chunk in token_chunks(len(hidden), len(weight), chunk_tokens):
            logits = own(hidden[chunk])
            theirs = [(project(states[chunk]), project.head) for states, project in others]
            for part, here in _parts(chunk, logits):
                given = [_logprobs(raw[here], other) for raw, other in theirs]
                raw = logits[here].requires_grad_(any(wants))
                with torch.set_grad_enabled(any(wants)):
                    loss, found = function(_logprobs(raw, own.head), part, *given)
                losses.append(loss.detach())
                values.append(found.detach())
                if any(wants):
                    (by_raw,) = torch.autograd.grad(loss, [raw])
                    raw.detach().copy_(by_raw)
                    del by_raw
                del given, loss, found  # and with them the graph
            if of_hidden is not None:
                of_hidden[chunk] = matmul(logits, own.head.weight)
            if of_weight is not None:
                add_product(of_weight, logits.T, hidden[chunk].to(logits.dtype))
            if of_bias is not None:
                of_bias += logits.sum(dim=0)
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
        return (*scaled, None, None, None)


# -- scores of chosen tokens ------------------------------------------------------------------------------------------


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type that a matrix product of these values runs in: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def chunked_token_logprobs(
    hidden: Tensor, head: Head, ids: Tensor, *, chunk_tokens: int = DEFAULT_CHUNK_TOKENS
) -> TokenScores:
    """Log-probabilities and entropies from hidden states, without the whole (tokens, vocabulary) tensor.

    Equal to `token_logprobs(hidden @ weight.T, ids)` and `entropy(hidden @ weight.T)`. The forward pass reads the
    vocabulary in tiles; with gradients each chunk is projected again, whole, in the backward pass.

    Args:
        hidden: (tokens, width) float, last hidden states at the positions that predict `ids`.
        head: the language-model head.
        ids: (tokens,) int.
        chunk_tokens: positions projected at once; the result does not depend on it.

    Returns:
        TokenScores of (tokens,) tensors.
    """
    if hidden.dim() != 2 or ids.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden must be (tokens, width) and ids (tokens,), got {tuple(hidden.shape)}, {tuple(ids.shape)}"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if not hidden.shape[0]:
        empty = lift(hidden.new_zeros(0))
        return TokenScores(empty, empty.clone(), empty.clone(), torch.zeros(0, dtype=torch.bool, device=hidden.device))
    scores = _ChunkedScores.apply(hidden, head.weight, head.bias, head, ids, chunk_tokens)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


def _stream_scores(hidden: Tensor, head: Head, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `TokenScores` holds of one chunk, in one pass over tiles of the vocabulary that never leave the cache.

    With the running maximum m, each tile adds to Z = sum exp(z - m) and U = sum exp(z - m) (z - m); a new maximum m'
    rescales both by exp(m - m'). At the end log pi(a) = z_a - m - log Z, and the entropy is log Z - U / Z.
    """
    tokens, vocabulary = hidden.shape[0], head.weight.shape[0]
    hidden = hidden.to(_compute_dtype(hidden))
    elements = TILE_ELEMENTS.get(hidden.device.type, DEFAULT_TILE_ELEMENTS)
    tile = max(1, min(vocabulary, elements // tokens))
    products = hidden.new_empty(tokens * tile)
    exponentials = torch.empty_like(products, dtype=lift(products[:0]).dtype)
    lowest = torch.finfo(exponentials.dtype).min
    peak = exponentials.new_full((tokens,), lowest)
    chosen = torch.full_like(peak, torch.nan)
    total, moment = torch.zeros_like(peak), torch.zeros_like(peak)
    best = torch.zeros_like(ids)
    for start in range(0, vocabulary, tile):
        rows = head.weight[start : start + tile].to(hidden.dtype)
        shape = tokens, rows.shape[0]
        size = shape[0] * shape[1]
        logits = lift(linear(hidden, rows, buffer=products[:size].view(shape)))
        if head.bias is not None:
            logits += head.bias[start : start + tile]
        if head.scale != 1.0:
            logits *= head.scale
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)
        inside = (ids >= start) & (ids < start + shape[1])
        here = (ids - start).clamp(0, shape[1] - 1)
        chosen = torch.where(inside, logits.gather(1, here.unsqueeze(1)).squeeze(1), chosen)
        highest, index = logits.max(dim=1)
        best = torch.where(highest > peak, index + start, best)
        before, peak = peak, torch.maximum(peak, highest)
        logits -= peak.unsqueeze(1)
        probs = torch.exp(logits, out=exponentials[:size].view(shape))
        moment = torch.exp(before - peak) * (moment + (before - peak) * total)
        total = torch.exp(before - peak) * total + probs.sum(dim=1)
        # a token of probability 0 adds nothing, where 0 * -inf would be NaN
        moment += probs.mul_(logits.clamp_(min=lowest)).sum(dim=1)
    spread = total.log()
    return chosen - peak - spread, spread - moment / total, peak + spread, best == ids


class _ChunkedScores(torch.autograd.Function):
    """TokenScores, a chunk of positions at a time; the backward pass projects each chunk again.

    With p = softmax(z), H the entropy and V = logsumexp(z), the gradients by the logits are

        d log p(a) / dz_j = 1[j = a] - p_j      dH / dz_j = -p_j (log p_j + H)      dV / dz_j = p_j

    so nothing of the width of the vocabulary outlives its chunk. (Activation checkpoints of each chunk would keep
    what a score without a gradient saved, until the whole backward pass ends.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        ids: Tensor,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        head = head._replace(weight=weight, bias=bias)  # as autograd hands them
        parts = token_chunks(len(hidden), len(weight), chunk_tokens)
        chunks = [_stream_scores(hidden[part], head, ids[part]) for part in parts]
        scores = tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))
        ctx.save_for_backward(hidden, weight, bias, ids, scores[1], scores[2])
        ctx.settings = head.scale, head.softcap, chunk_tokens
        ctx.compute_dtype = _compute_dtype(hidden)
        ctx.mark_non_differentiable(scores[3])
        ctx.set_materialize_grads(False)
        return scores[0], scores[1], scores[2], scores[3]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_logprobs: Tensor | None, by_entropies: Tensor | None, by_normalizers: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, entropies, log_normalizers = ctx.saved_tensors
        scale, softcap, chunk_tokens = ctx.settings
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        sums = torch.float64 if weight.dtype == torch.float64 else torch.float32
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_weight = torch.zeros_like(weight, dtype=sums) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=sums) if needs_bias and bias is not None else None
        cast = weight.to(ctx.compute_dtype)
        head = Head(cast, None if bias is None else bias.to(cast.dtype), scale, softcap)
        for part in token_chunks(len(hidden), len(weight), chunk_tokens):
            read = hidden[part].to(ctx.compute_dtype)
            logits = head.shaped(lift(linear(read, cast, head.bias)))
            inner = None if softcap is None else 1 - (logits / softcap).square()  # 1 - tanh^2
            logprobs = logits.sub_(log_normalizers[part].unsqueeze(-1))
            probs = logprobs.exp()
            factor = torch.zeros_like(log_normalizers[part])
            if by_logprobs is not None:
                factor -= by_logprobs[part]
            if by_normalizers is not None:
                factor += by_normalizers[part]
            if by_entropies is None:
                grad = probs.mul_(factor.unsqueeze(-1))
            else:  # a token of probability 0 has no gradient, where 0 * -inf would be NaN
                slope = logprobs.clamp_(min=torch.finfo(logprobs.dtype).min).add_(entropies[part].unsqueeze(-1))
                slope.mul_(by_entropies[part].unsqueeze(-1)).neg_().add_(factor.unsqueeze(-1))
                grad = probs.mul_(slope)
            if by_logprobs is not None:
                grad.scatter_add_(-1, ids[part].unsqueeze(-1), by_logprobs[part].unsqueeze(-1))
            if inner is not None:
                grad.mul_(inner)
            if scale != 1.0:
                grad.mul_(scale)
            if of_bias is not None:
                of_bias += grad.sum(dim=0)
            grad = grad.to(cast.dtype)
            if of_hidden is not None:
                of_hidden[part] = matmul(grad, cast)
            if of_weight is not None:
                if grad.dtype == sums:
                    add_product(of_weight, grad.T, read)
                else:
                    of_weight += grad.T @ read
            del logits, logprobs, probs, grad, inner  # before the next chunk is projected
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )
