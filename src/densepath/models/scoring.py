"""Log-probabilities of completions under a causal LM: packed, prompts shared, only completions projected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from densepath.core.heads import Head
from densepath.core.logprobs import TokenScores, chunked_token_logprobs
from densepath.errors import NumericalError
from densepath.models.packing import PackedBatch, pack
from densepath.models.prefix import LEAST_SAVED, SharedPrefix, common_beginning, compute_prefix, longest_row

DEFAULT_TOKEN_BUDGET = 2048
_CHECK_TOLERANCE = 2e-3


@dataclass(frozen=True)
class CompletionScores:
    """Per-token results of one call, in the caller's order.

    Attributes:
        logprobs: one (completion tokens,) tensor a sequence, nats; float32, or float64 for a float64 model.
        entropies: likewise, entropy of the distribution each token was drawn from, nats.
        log_normalizers: likewise, logsumexp of the raw logits at each state, nats.
    """

    logprobs: list[Tensor]
    entropies: list[Tensor]
    log_normalizers: list[Tensor]


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, adapters left in place."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def head_of(model: Any) -> Head:
    """Weight, bias, logit scale and soft-capping of the language-model head."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = 1.0 / config.logits_scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(head.weight, getattr(head, "bias", None), 1.0 if scale is None else float(scale), softcap)


def _has_plain_attention(model: Any) -> bool:
    """Whether the configuration promises full causal attention on an implementation that takes a 4-D mask."""
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return all(kind == "full_attention" for kind in layer_types)
    return getattr(config, "sliding_window", None) is None or getattr(config, "use_sliding_window", True) is False


def hidden_states(model: Any, batch: PackedBatch, prefix: SharedPrefix | None = None) -> Tensor:
    """(rows, width, hidden width) last hidden states of a packed batch, behind a beginning that all share if given."""
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
    }
    if prefix is not None:
        inputs = prefix.inputs(batch)
    return model.base_model(**inputs, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def _check_packing(model: Any, device: torch.device) -> tuple[bool, bool]:
    """Compare with plain log-probabilities, on a few made-up tokens: those of packing, and behind a kept beginning."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * k + 3) % vocabulary for k in range(12)]
    prompts, completions = [ids[:4], ids[:4], [*ids[:2], *ids[5:7]]], [ids[4:8], ids[8:11], ids[7:11]]
    head = head_of(model)

    def score(prefix: SharedPrefix | None = None, **packing: Any) -> Tensor:
        found: dict[int, Tensor] = {}
        cut = 0 if prefix is None else prefix.length
        for batch in pack([prompt[cut:] for prompt in prompts], completions, **packing):
            for index, scores in _score_batch(model, batch.to(device), head, prefix):
                found[index] = scores.logprobs
        return torch.cat([found[index] for index in range(len(prompts))])

    def equal(make_prefix: Callable[[], SharedPrefix | None]) -> bool:
        try:
            prefix = make_prefix()
            # two branches of a prompt in one row; and the third sequence in a row of its own, without a mask
            tried = score(prefix), score(prefix, row_tokens=1)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False
        return all(torch.allclose(t, plain, atol=_CHECK_TOLERANCE, rtol=_CHECK_TOLERANCE) for t in tried)

    plain = score(padded=True)
    packed = equal(lambda: None)
    return packed, packed and equal(lambda: compute_prefix(model, ids[:2]))


def supports_packing(model: Any) -> bool:
    """Whether packed scoring is exact for this model: by its configuration, and then by trying it once.

    Models with sliding windows, recurrent layers or attention kernels without arbitrary masks are scored
    padded instead; the results are the same, only slower. The answer is kept on the model.
    """
    return _supports(model)[0]


def _supports(model: Any) -> tuple[bool, bool]:
    """Whether packing is exact, and whether a kept beginning is."""
    model = causal_lm(model)
    known: tuple[bool, bool] | None = getattr(model, "_densepath_supports_packing", None)
    if known is None and is_sharded(model):
        return False, False  # nothing can be tried outside of its forward pass
    if known is None:
        training = model.training
        model.eval()
        with torch.no_grad():
            device = model.get_input_embeddings().weight.device
            known = _check_packing(model, device) if _has_plain_attention(model) else (False, False)
        model.train(training)
        model._densepath_supports_packing = known
    return known


def _score_batch(
    model: Any, batch: PackedBatch, head: Head, prefix: SharedPrefix | None = None
) -> list[tuple[int, TokenScores]]:
    weight, bias, scale, softcap = head
    rows, columns = batch.predicting()
    hidden = hidden_states(model, batch, prefix)
    rows, columns = rows.to(hidden.device), columns.to(hidden.device)
    scores = chunked_token_logprobs(
        hidden[rows, columns], weight, batch.labels[rows, columns], bias, logit_scale=scale, softcap=softcap
    )
    parts = (torch.split(values, list(batch.lengths)) for values in scores)
    return [(index, TokenScores(*values)) for index, *values in zip(batch.sequences, *parts, strict=True)]


@torch.no_grad()
def score_completions(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    on_progress: Callable[[int], None] | None = None,
) -> CompletionScores:
    """Log-probability and entropy of every completion token, `log pi(y_t | x, y_<t)`.

    Completions of one prompt share its computation, turns of a conversation that of the turns before, and all share
    that of a beginning which every prompt has. The result does not depend on the order of the rows, on what else is
    scored with them, on padding or on `token_budget` (up to float rounding).

    Args:
        model: causal LM, scored in eval mode; its mode is restored.
        prompt_ids: ids of each prompt, not empty.
        completion_ids: ids of each completion, EOS included where it was sampled.
        token_budget: tokens in one forward pass; bounds memory.
        on_progress: called with the number of sequences finished, after each batch.

    Returns:
        CompletionScores in the order given.

    Raises:
        NumericalError: a log-probability is NaN or infinite; the message names the sequence and token.
    """
    if is_sharded(model):
        from densepath.models.sharded import score_sharded

        padded = not supports_packing(model)
        scored = score_sharded(model, prompt_ids, completion_ids, token_budget=token_budget, padded=padded)
        return _checked(scored, completion_ids)
    model = causal_lm(model)
    packed, keeps_prefix = _supports(model)
    head = head_of(model)
    device = model.get_input_embeddings().weight.device
    empty = torch.zeros(0, dtype=torch.float64 if head.weight.dtype == torch.float64 else torch.float32)
    results = [TokenScores(empty, empty, empty, empty.bool())] * len(prompt_ids)
    training = model.training
    model.eval()
    try:
        for indices, prefix in _shares(model, prompt_ids, completion_ids, keeps_prefix):
            cut = 0 if prefix is None else prefix.length
            prompts, completions = [prompt_ids[i][cut:] for i in indices], [completion_ids[i] for i in indices]
            for batch in pack(prompts, completions, token_budget=token_budget, padded=not packed):
                for index, scores in _score_batch(model, batch.to(device), head, prefix):
                    results[indices[index]] = TokenScores(*(values.cpu() for values in scores))
                if on_progress is not None:
                    on_progress(len(batch.sequences))
    finally:
        model.train(training)
    return _checked(results, completion_ids)


def _checked(results: Sequence[TokenScores], completion_ids: Sequence[Sequence[int]]) -> CompletionScores:
    check_finite([scores.logprobs for scores in results], completion_ids)
    return CompletionScores(
        [scores.logprobs for scores in results],
        [scores.entropies for scores in results],
        [scores.log_normalizers for scores in results],
    )


def is_sharded(model: Any) -> bool:
    """Whether a process holds but a part of the model's weights (FSDP2, DeepSpeed ZeRO-3)."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def _shares(
    model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], keeps_prefix: bool
) -> list[tuple[list[int], SharedPrefix | None]]:
    """Which sequences are scored behind a beginning that all prompts share, and which are scored whole."""
    everything = list(range(len(prompt_ids)))
    beginning = common_beginning(prompt_ids) if keeps_prefix and len(everything) > 1 else []
    if not beginning:
        return [(everything, None)]
    longest = longest_row(model.config.get_text_config().hidden_size, len(beginning))
    short = [i for i in everything if len(prompt_ids[i]) + len(completion_ids[i]) - len(beginning) <= longest]
    tokens = sum(map(len, prompt_ids)) + sum(map(len, completion_ids))
    if (len(short) - 1) * len(beginning) <= LEAST_SAVED * tokens:
        return [(everything, None)]
    kept = set(short)
    return [([i for i in everything if i not in kept], None), (short, compute_prefix(model, beginning))]


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
