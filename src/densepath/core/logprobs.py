"""Logits or hidden states -> token log-probabilities, entropy and exact KL, in float32 or better.

Half-precision inputs are lifted to float32 before the log-softmax; float64 stays float64. The functions
that take hidden states project a chunk of positions at a time: (tokens, vocabulary) never exists whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_TOKENS = 512
"""Positions projected through the head at once; in the backward pass their logits exist whole: 512 x 49,152 float32
are 96 MiB."""
TILE_ELEMENTS = {"cpu": 2**20}
"""Logits that the forward pass holds at once, by device type: 4 MiB of float32 stay in a CPU's cache."""
DEFAULT_TILE_ELEMENTS = 2**26
"""The same on a GPU, where few large products are faster than many small ones."""


class TokenScores(NamedTuple):
    """What one pass over the vocabulary gives for each chosen token; float32 or float64, nats.

    Attributes:
        logprobs: log-probability of the token.
        entropies: entropy of the distribution it was chosen from.
        log_normalizers: `V(s) = logsumexp_a` of the raw logits; `logprobs + log_normalizers` is the raw logit.
        is_top1: bool, whether the token is the first among the most probable.
    """

    logprobs: Tensor
    entropies: Tensor
    log_normalizers: Tensor
    is_top1: Tensor


def lift(values: Tensor) -> Tensor:
    """float32 of half-precision values; float32 and float64 as they are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each id: `log_softmax(logits)[..., id]`.

    Args:
        logits: (..., vocabulary) float.
        ids: (...) int.

    Returns:
        (...) float32 (float64 for float64 logits), nats.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, ids {tuple(ids.shape)}")
    logits = lift(logits)
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax: `-sum_a p(a) log p(a)`.

    Args:
        logits: (..., vocabulary) float.

    Returns:
        (...) float32 or float64, nats.
    """
    return entropy_of_logprobs(torch.log_softmax(lift(logits), dim=-1))


def entropy_of_logprobs(logprobs: Tensor) -> Tensor:
    """`entropy` of what is normalised already: (..., vocabulary) log-probabilities, nats -> (...) nats."""
    # a token of probability 0 adds nothing, where 0 * -inf would be NaN
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def exact_kl(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL over the whole vocabulary at each state: `sum_a p(a) (log p(a) - log q(a))`.

    Args:
        logits: (..., vocabulary) float, of p.
        other_logits: (..., vocabulary) float, of q.

    Returns:
        (...) float32 or float64, nats.
    """
    if logits.shape != other_logits.shape:
        raise ValueError(f"shapes differ: {tuple(logits.shape)} and {tuple(other_logits.shape)}")
    return kl_of_logprobs(torch.log_softmax(lift(logits), dim=-1), torch.log_softmax(lift(other_logits), dim=-1))


def kl_of_logprobs(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """`exact_kl` of what is normalised already: (..., vocabulary) log-probabilities of p and q, nats -> (...) nats."""
    # where p(a) = 0 the term is 0, even if q(a) = 0 too
    difference = torch.where(logprobs > -torch.inf, logprobs - other_logprobs, torch.zeros_like(logprobs))
    return (logprobs.exp() * difference).sum(dim=-1)


def contrastive_logits(sft_logits: Tensor, ref_logits: Tensor, alpha: float) -> Tensor:
    """Logits of contrastive decoding: `(1 + alpha) log pi_SFT - alpha log pi_ref`, token by token.

    With alpha = 1/beta each factor is that of the KL-regularised optimum
    `pi*(y|x) ~ pi_SFT(y|x)^(1+1/beta) pi_ref(y|x)^(-1/beta)`, but each token is normalised on its own,
    so the sequences are not distributed as pi*.

    Args:
        sft_logits: (..., vocabulary) float.
        ref_logits: (..., vocabulary) float.
        alpha: strength, at least 0; 0 gives pi_SFT.

    Returns:
        (..., vocabulary) float32 or float64, unnormalised.

    Source: docs/method.md, section "Relatives without training"; derived, not the paper's.
    """
    if sft_logits.shape != ref_logits.shape:
        raise ValueError(f"shapes differ: {tuple(sft_logits.shape)} and {tuple(ref_logits.shape)}")
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    sft = torch.log_softmax(lift(sft_logits), dim=-1)
    ref = torch.log_softmax(lift(ref_logits), dim=-1)
    return (1 + alpha) * sft - alpha * ref


def _head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    logits = lift(torch.nn.functional.linear(hidden, weight, bias))
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _stream_scores(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `TokenScores` holds of one chunk, in one pass over tiles of the vocabulary that never leave the cache.

    With the running maximum m, each tile adds to Z = sum exp(z - m) and U = sum exp(z - m) (z - m); a new maximum m'
    rescales both by exp(m - m'). At the end log pi(a) = z_a - m - log Z, and the entropy is log Z - U / Z.
    """
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
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
        rows = weight[start : start + tile].to(hidden.dtype)
        shape = tokens, rows.shape[0]
        size = shape[0] * shape[1]
        logits = lift(torch.mm(hidden, rows.t(), out=products[:size].view(shape)))
        if bias is not None:
            logits += bias[start : start + tile]
        if scale != 1.0:
            logits *= scale
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
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
        ids: Tensor,
        chunk_tokens: int,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chunks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for start in range(0, hidden.shape[0], chunk_tokens):
            part, chosen = hidden[start : start + chunk_tokens], ids[start : start + chunk_tokens]
            chunks.append(_stream_scores(part, weight, bias, chosen, scale, softcap))
        scores = tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))
        ctx.save_for_backward(hidden, weight, bias, ids, scores[1], scores[2])
        ctx.settings = chunk_tokens, scale, softcap
        ctx.compute_dtype = _compute_dtype(hidden)
        ctx.mark_non_differentiable(scores[3])
        ctx.set_materialize_grads(False)
        return scores[0], scores[1], scores[2], scores[3]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_logprobs: Tensor | None, by_entropies: Tensor | None, by_normalizers: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias, ids, entropies, log_normalizers = ctx.saved_tensors
        chunk_tokens, scale, softcap = ctx.settings
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        sums = torch.float64 if weight.dtype == torch.float64 else torch.float32
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_weight = torch.zeros_like(weight, dtype=sums) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=sums) if needs_bias and bias is not None else None
        cast = weight.to(ctx.compute_dtype)
        for start in range(0, hidden.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            read = hidden[part].to(ctx.compute_dtype)
            logits = _head_logits(read, cast, None if bias is None else bias.to(cast.dtype), scale, softcap)
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
                of_hidden[part] = grad @ cast
            if of_weight is not None:
                if grad.dtype == sums:
                    of_weight.addmm_(grad.T, read)
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
            None,
        )


def logit_scores(logits: Tensor, ids: Tensor, *, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> TokenScores:
    """`TokenScores` of logits that exist whole, lifted to float32 a chunk of positions at a time.

    Args:
        logits: (tokens, vocabulary) float.
        ids: (tokens,) int.
        chunk_tokens: positions lifted at once; the result does not depend on it.

    Returns:
        TokenScores of (tokens,) tensors, with gradients where `logits` has them.
    """
    if logits.dim() != 2 or ids.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (tokens, vocabulary), ids (tokens,): {tuple(logits.shape)}, {tuple(ids.shape)}"
        )
    chunks: list[TokenScores] = []
    for start in range(0, max(len(ids), 1), chunk_tokens):
        part, chosen = lift(logits[start : start + chunk_tokens]), ids[start : start + chunk_tokens]
        normalizers = part.logsumexp(dim=-1)
        logprobs = part - normalizers.unsqueeze(-1)
        found = logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        chunks.append(TokenScores(found, entropy_of_logprobs(logprobs), normalizers, part.argmax(dim=-1) == chosen))
    return TokenScores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type that a matrix product of these values runs in: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def chunked_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    *,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> TokenScores:
    """Log-probabilities and entropies from hidden states, without the whole (tokens, vocabulary) tensor.

    Equal to `token_logprobs(hidden @ weight.T, ids)` and `entropy(hidden @ weight.T)`. The forward pass reads the
    vocabulary in tiles; with gradients each chunk is projected again, whole, in the backward pass.

    Args:
        hidden: (tokens, width) float, last hidden states at the positions that predict `ids`.
        weight: (vocabulary, width) float, the language-model head.
        ids: (tokens,) int.
        bias: (vocabulary,) float or None.
        chunk_tokens: positions projected at once; the result does not depend on it.
        logit_scale: factor on the logits (Cohere, Granite).
        softcap: final logit soft-capping (Gemma 2), or None.

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
    scores = _ChunkedScores.apply(hidden, weight, bias, ids, chunk_tokens, logit_scale, softcap)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)
