"""Last hidden states where a completion's tokens are predicted, and whether a head can be applied to them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.heads import head_logprobs
from densepath.models.packing import pack
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET, causal_lm, head_of, hidden_states, supports_packing


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
    """
    model = causal_lm(model)
    embedding = model.get_input_embeddings().weight
    found: list[Tensor] = [embedding.new_zeros(0, head_of(model).weight.shape[1])] * len(prompt_ids)
    padded = not supports_packing(model)
    training = model.training
    model.eval()
    try:
        for batch in pack(prompt_ids, completion_ids, token_budget=token_budget, padded=padded):
            batch = batch.to(embedding.device)
            rows, columns = (where.to(embedding.device) for where in batch.predicting())
            states = torch.split(hidden_states(model, batch)[rows, columns], list(batch.lengths))
            for index, values in zip(batch.sequences, states, strict=True):
                found[index] = values
    finally:
        model.train(training)
    return found


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Whether the model's logits are `head_of` applied to its last hidden states, tried on a few made-up tokens.

    Not so for a head with an adapter, a quantised one, or one with a scaling of its own.
    """
    model = causal_lm(model)
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        return False
    embedding = model.get_input_embeddings().weight
    ids = torch.tensor([[(7 * k + 3) % len(embedding) for k in range(6)]], device=embedding.device)
    training = model.training
    model.eval()
    try:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = head_logprobs(states, head_of(model))
        own = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].to(ours.dtype), dim=-1)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    finally:
        model.train(training)
    # A model's own half-precision logits are rounded to 2^-8 of their size.
    tolerance = 2e-3 if embedding.dtype in (torch.float32, torch.float64) else 0.25
    return ours.shape == own.shape and bool(torch.allclose(ours, own, atol=tolerance, rtol=0.0))
