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
from densepath.rewards.frozen import FrozenPolicy


@torch.no_grad()
def preview_logprobs(
    sft: FrozenPolicy,
    ref: FrozenPolicy,
    texts: Sequence[Encoded],
    alphas: Sequence[float],
    states: Sequence[tuple[Tensor, Tensor]],
) -> dict[float, list[Tensor]] | None:
    """Log-probability of each completion token under the preview, a chunk of the vocabulary's width at a time.

    Args:
        sft: the SFT model.
        ref: the reference.
        texts: prompts and completions as ids.
        alphas: strengths, 1/beta; 0 gives the SFT model.
        states: of each text, (completion tokens, width) last hidden states of the SFT model and of the reference,
            which scoring the text keeps.

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
    rows = min(len(sft_head.weight), len(ref_head.weight))  # an id that one of the two lacks has no contrast
    found: dict[float, list[Tensor]] = {alpha: [] for alpha in alphas}
    for (of_sft, of_ref), text in zip(states, texts, strict=True):
        labels = torch.tensor(text.completion_ids, device=of_sft.device)
        parts: dict[float, list[Tensor]] = {alpha: [] for alpha in alphas}
        for part, both in logprobs_in_parts((of_sft, of_ref.to(of_sft.device)), heads):
            mine, theirs = (each[:, :rows] for each in both)
            for alpha in alphas:
                logprobs = torch.log_softmax(contrastive_logits(mine, theirs, alpha), dim=-1)
                parts[alpha].append(logprobs.gather(-1, labels[part].unsqueeze(-1)).squeeze(-1).double().cpu())
        for alpha in alphas:
            found[alpha].append(torch.cat(parts[alpha]))
    return found
