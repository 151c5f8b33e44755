"""Last hidden states where a completion's tokens are predicted, of models with a plain head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densepath.errors import ModelError
from densepath.models.logits import batches_of, causal_lm, hidden_states, layout_of, plain_head
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET, check_ids


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
    found: list[Tensor] = [embedding.new_zeros(0, head.weight.shape[1])] * len(prompt_ids)
    layout = layout_of(model)
    training = model.training
    model.eval()
    try:
        for batch in batches_of(prompt_ids, completion_ids, layout, token_budget):
            batch = batch.to(embedding.device)
            rows, columns = (where.to(embedding.device) for where in batch.predicting())
            states = torch.split(hidden_states(model, batch)[rows, columns], list(batch.lengths))
            for index, values in zip(batch.sequences, states, strict=True):
                found[index] = values
    finally:
        model.train(training)
    return found
