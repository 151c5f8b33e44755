"""What DPR would converge to, before any training: contrastive decoding, and what it makes of given texts.

    pi_alpha(. | s) ~ pi_SFT(. | s)^(1 + alpha) pi_ref(. | s)^(-alpha),    alpha = 1/beta

It is the KL-regularised optimum token by token, so a preview and not the optimum itself (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.heads import logprobs_in_parts
from densepath.core.logprobs import contrastive_logits
from densepath.data.encode import Encoded
from densepath.models.logits import plain_head
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.rewards.frozen import FrozenPolicy


@torch.no_grad()
def preview_logprobs(
    sft: FrozenPolicy,
    ref: FrozenPolicy,
    texts: Sequence[Encoded],
    alphas: Sequence[float],
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> dict[float, list[Tensor]] | None:
    """Log-probability of each completion token under the preview, a chunk of the vocabulary's width at a time.

    Args:
        sft: the SFT model.
        ref: the reference.
        texts: prompts and completions as ids.
        alphas: strengths, 1/beta; 0 gives the SFT model.
        token_budget: tokens in one forward pass.

    Returns:
        Strength -> one (completion tokens,) float64 tensor for each text, nats, normalised over the ids that both
        models have. None where a model's head cannot be
        applied to its hidden states apart from the model.
    """
    with sft.active() as model:
        sft_head = plain_head(model)
    with ref.active() as model:
        ref_head = plain_head(model)
    if sft_head is None or ref_head is None:
        return None
    heads = sft_head.lifted(), ref_head.lifted()
    prompts, ids = [text.prompt_ids for text in texts], [text.completion_ids for text in texts]
    rows = min(len(sft_head.weight), len(ref_head.weight))  # an id that one of the two lacks has no contrast
    found: dict[float, list[Tensor]] = {alpha: [] for alpha in alphas}
    states = (policy.hidden_states(prompts, ids, token_budget) for policy in (sft, ref))
    for of_sft, of_ref, tokens in zip(*states, ids, strict=True):
        labels = torch.tensor(tokens, device=of_sft.device)
        parts: dict[float, list[Tensor]] = {alpha: [] for alpha in alphas}
        for part, both in logprobs_in_parts((of_sft, of_ref.to(of_sft.device)), heads):
            mine, theirs = (each[:, :rows] for each in both)
            for alpha in alphas:
                logprobs = torch.log_softmax(contrastive_logits(mine, theirs, alpha), dim=-1)
                parts[alpha].append(logprobs.gather(-1, labels[part].unsqueeze(-1)).squeeze(-1).double().cpu())
        for alpha in alphas:
            found[alpha].append(torch.cat(parts[alpha]))
    return found
