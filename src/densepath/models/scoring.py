"""Log-probabilities of completions under a causal LM: packed, prompts shared, only completions projected."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from densepath.core.heads import Head, chunked_token_logprobs
from densepath.core.logprobs import TokenScores
from densepath.errors import ModelError, NumericalError
from densepath.models.compat import embedding_rows, in_mode, is_sharded, predicted_rows
from densepath.models.flat_attention import Beginning
from densepath.models.logits import (
    causal_lm,
    hidden_states,
    layout_of,
    own_budget,
    plain_head,
    score_positions,
)
from densepath.models.packing import Layout, PackedBatch, common_beginning, pack

DEFAULT_TOKEN_BUDGET = 2048
LEAST_BEGINNING = 64
"""Tokens from which on what all prompts begin with is kept for all flat rows of a call, not computed in each."""


@dataclass(frozen=True)
class CompletionScores:
    """Per-token results of one call, in the caller's order.

    Attributes:
        logprobs: one (completion tokens,) tensor a sequence, nats; float32, or float64 for a float64 model.
        entropies: likewise, entropy of the distribution each token was drawn from, nats.
        log_normalizers: likewise, logsumexp of the raw logits at each state, nats.
        hidden: index of a sequence -> (completion tokens, width) last hidden states, on the model's device, of those
            that were asked for; empty where the head is not plain.
    """

    logprobs: list[Tensor]
    entropies: list[Tensor]
    log_normalizers: list[Tensor]
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def score_completions(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    keep_hidden: Collection[int] = (),
    on_progress: Callable[[int], None] | None = None,
) -> CompletionScores:
    """Log-probability and entropy of every completion token, `log pi(y_t | x, y_<t)`.

    Completions of one prompt share its computation, equal ones all of it, turns of a conversation that of the turns
    before, and all share that of a beginning which every prompt has. The result does not depend on the order of the
    rows, on what else is scored with them, on padding or on `token_budget` (up to float rounding).

    Args:
        model: causal LM, scored in eval mode; its mode is restored.
        prompt_ids: ids of each prompt, not empty.
        completion_ids: ids of each completion, EOS included where it was sampled.
        token_budget: tokens in one forward pass; bounds memory.
        keep_hidden: indices of the sequences whose hidden states are kept, for what whole distributions are needed.
        on_progress: called with the number of sequences finished, after each batch.

    Returns:
        CompletionScores in the order given.

    Raises:
        NumericalError: a log-probability is NaN or infinite; the message names the sequence and token.
        ModelError: the model is not causal, or has no embedding for an id; the message names it.
    """
    check_ids(model, prompt_ids, completion_ids)
    if is_sharded(model):
        from densepath.models.sharded import score_sharded

        scored = score_sharded(model, prompt_ids, completion_ids, token_budget=token_budget)
        return _checked(scored, completion_ids, {})
    model = causal_lm(model)
    layout, head = layout_of(model), plain_head(model)
    token_budget = token_budget if head is not None else own_budget(model, token_budget)
    weights = model.get_input_embeddings().weight
    empty = torch.zeros(0, dtype=torch.float64 if weights.dtype == torch.float64 else torch.float32)
    prompts, completions, places = distinct(prompt_ids, completion_ids)
    results = [TokenScores(empty, empty, empty, empty.bool())] * len(prompts)
    wanted, counts = {places[index] for index in keep_hidden}, Counter(places)
    hidden: dict[int, Tensor] = {}
    with in_mode(model):
        begun = () if head is None else beginning_to_keep(prompts, layout)
        kept_beginning = Beginning(len(begun)) if begun else None
        for batch in pack(prompts, completions, layout, token_budget=token_budget, beginning=begun):
            scores, states = _score_batch(model, batch.to(weights.device), head, kept_beginning)
            parts = (torch.split(values.cpu(), list(batch.lengths)) for values in scores)
            for index, *values in zip(batch.sequences, *parts, strict=True):
                results[index] = TokenScores(*values)
            if wanted and states is not None:
                found = zip(batch.sequences, torch.split(states, list(batch.lengths)), strict=True)
                hidden |= {index: rows.clone() for index, rows in found if index in wanted}  # not the whole batch's
            if on_progress is not None:
                on_progress(sum(counts[index] for index in batch.sequences))
    kept = {index: hidden[places[index]] for index in keep_hidden if places[index] in hidden}
    return _checked([results[place] for place in places], completion_ids, kept)


def distinct(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[int]]:
    """Prompts and completions of the distinct pairs, and for each pair which of them it is.

    >>> distinct([[1], [1], [1]], [[2], [3], [2]])
    ([(1,), (1,)], [(2,), (3,)], [0, 1, 0])
    """
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    pairs = zip(prompt_ids, completion_ids, strict=True)
    places = [known.setdefault((tuple(prompt), tuple(ids)), len(known)) for prompt, ids in pairs]
    return [prompt for prompt, _ in known], [ids for _, ids in known], places


def beginning_to_keep(prompts: Sequence[tuple[int, ...]], layout: Layout) -> list[int]:
    """Ids that begin every prompt, if reading them once for all flat rows of a call is worth it."""
    beginning = common_beginning(prompts) if layout is Layout.FLAT else []
    return beginning if len(beginning) >= LEAST_BEGINNING else []


def _score_batch(
    model: Any, batch: PackedBatch, head: Head | None, beginning: Beginning | None
) -> tuple[TokenScores, Tensor | None]:
    """Scores where a batch predicts completion tokens, and (positions, width) hidden states there, if known."""
    where = batch.predicting()
    if head is None:
        return score_positions(model, batch, where, None), None
    states = hidden_states(model, batch, beginning)[where]
    return chunked_token_logprobs(states, head, batch.labels[where]), states


def _checked(
    results: Sequence[TokenScores], completion_ids: Sequence[Sequence[int]], hidden: Mapping[int, Tensor]
) -> CompletionScores:
    check_finite([scores.logprobs for scores in results], completion_ids)
    return CompletionScores(
        [scores.logprobs for scores in results],
        [scores.entropies for scores in results],
        [scores.log_normalizers for scores in results],
        hidden,
    )


def check_ids(model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> None:
    """Refuse ids that a model has no embedding for.

    Raises:
        ModelError: the first of them, with its sequence.
    """
    read, predicted = embedding_rows(model), predicted_rows(model)
    for index, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        largest, rows = max(prompt, default=0), read
        if largest < rows:
            largest, rows = max(completion, default=0), predicted
        if largest >= rows:
            raise ModelError(
                f"sequence {index} has token id {largest}, and the model has {rows} of them: the id belongs to a "
                "token that was added later, or is one of another model's spare rows, which no tokenizer gives "
                "(model.resize_token_embeddings(len(tokenizer)) removes them)"
            )


@contextlib.contextmanager
def naming(model: str) -> Iterator[None]:
    """Say in a `NumericalError` of the block which of several models gave it.

    Args:
        model: its role, as the message begins with it: `the reference`.

    Raises:
        NumericalError: the block's, with the role before its message and with its `sequences`.
    """
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{model}: {error}", error.sequences) from error


def check_finite(
    rows: Sequence[Tensor], completion_ids: Sequence[Sequence[int]], what: str = "log-probability"
) -> None:
    """Refuse NaN and infinity among values of completion tokens.

    Raises:
        NumericalError: the message names the first sequence and token, its `sequences` all of them.
    """
    bad = tuple(index for index, values in enumerate(rows) if not bool(torch.isfinite(values).all()))
    if bad:
        values = rows[bad[0]]
        token = int((~torch.isfinite(values)).nonzero()[0])
        raise NumericalError(
            f"sequence {bad[0]}, completion token {token} (id {completion_ids[bad[0]][token]}): "
            f"{what} is {float(values[token])}; check the model's weights for NaN",
            bad,
        )


@torch.no_grad()
def completion_hidden_states(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> list[Tensor]:
    """Hidden states that predict each completion token; `head_logprobs` of them are `log pi(.|x, y_<t)`.

    They take the width of the model instead of its vocabulary: what to keep of a forward pass whose distributions
    are needed later.

    Args:
        model: causal LM, run in eval mode; its mode is restored.
        prompt_ids: ids of each prompt, not empty.
        completion_ids: ids of each completion, EOS included where it was sampled.
        token_budget: tokens in one forward pass; bounds memory.

    Returns:
        One (completion tokens, width) tensor a sequence, in the order given, on the model's device.

    Raises:
        ModelError: the head is not plain, so that hidden states do not say what the model predicts; an id that the
            model has no embedding for.
    """
    check_ids(model, prompt_ids, completion_ids)
    model = causal_lm(model)
    head = plain_head(model)
    if head is None:
        raise ModelError(f"{type(model).__name__}: its head is not a plain linear layer over its last hidden states")
    embedding = model.get_input_embeddings().weight
    prompts, completions, places = distinct(prompt_ids, completion_ids)
    found: list[Tensor] = [embedding.new_zeros(0, head.weight.shape[1])] * len(prompts)
    layout = layout_of(model)
    begun = beginning_to_keep(prompts, layout)
    beginning = Beginning(len(begun)) if begun else None
    with in_mode(model):
        for batch in pack(prompts, completions, layout, token_budget=token_budget, beginning=begun):
            batch = batch.to(embedding.device)
            rows, columns = (where.to(embedding.device) for where in batch.predicting())
            states = torch.split(hidden_states(model, batch, beginning)[rows, columns], list(batch.lengths))
            for index, values in zip(batch.sequences, states, strict=True):
                found[index] = values
    return [found[place] for place in places]
