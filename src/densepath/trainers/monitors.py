"""What DPRTrainer logs besides TRL's metrics: numbers of the global batch that help to tell whether it works."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from densepath.core.masks import masked_sum
from densepath.core.monitors import correlation, effective_sample_share, log_weight_sums, ngram_counts
from densepath.core.rewards import baseline_relative
from densepath.data import Encoded, encode_pairs
from densepath.errors import DataError
from densepath.models.scoring import score_completions

NGRAM = 4
"""Tokens in an n-gram of `completions/distinct_4`: Welleck et al.'s seq-rep-4."""


def distinct_ngrams(completion_ids: Tensor, mask: Tensor, accelerator: Accelerator) -> float:
    """Distinct 4-grams of a completion as a share of its 4-grams, averaged over the completions that have any.

    Args:
        completion_ids: (completions, tokens) int, of this process.
        mask: (completions, tokens) bool.
        accelerator: joins the processes.

    Returns:
        Mean share over all processes, in (0, 1]; NaN if every completion is shorter.
    """
    distinct, total = ngram_counts(completion_ids, mask, NGRAM)
    has_any = total > 0
    shares = torch.where(has_any, distinct / total.clamp(min=1), 0.0)
    sums = accelerator.reduce(torch.stack([shares.sum(), has_any.sum().float()]), reduction="sum")
    share, rows = sums.tolist()
    return float(share / rows) if rows else math.nan


def held_out_reward(
    sft_logprobs: Tensor, held_out_ref_logprobs: Tensor, mask: Tensor, accelerator: Accelerator
) -> float:
    """Mean over all processes of `sum_t log pi_SFT - log pi_held_out`: the reward that nothing optimises.

    Args:
        sft_logprobs: (completions, tokens) float, nats.
        held_out_ref_logprobs: the same under a reference that the reward does not use.
        mask: (completions, tokens) bool.
        accelerator: joins the processes.

    Returns:
        Nats per completion.
    """
    rewards = masked_sum(baseline_relative(sft_logprobs, held_out_ref_logprobs, mask), mask)
    totals = torch.stack([rewards, torch.full_like(rewards, float(len(mask)))])
    total, rows = accelerator.reduce(totals, reduction="sum").tolist()
    return float(total / rows)


def reward_correlations(dense: Sequence[float], others: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Correlation of the dense reward with each verifier or reward function, over the completions of a batch.

    Args:
        dense: dense reward of each completion, nats.
        others: name -> one number for each completion; None or NaN where the function gave none.

    Returns:
        `reward_corr/NAME` -> Pearson's correlation; NaN where one side does not vary.
    """
    x = torch.tensor(dense, dtype=torch.float64)
    found = {}
    for name, values in others.items():
        y = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
        found[f"reward_corr/{name}"] = correlation(x, y).item()
    return found


class EffectiveSampleSize:
    """Effective share of the completions of an optimizer step, weighted by `pi_theta / pi_sampler`.

    1 while the policy is the one that sampled; it falls with further updates on one batch, and with a sampler whose
    numerics differ from the trainer's.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._parts: list[Tensor] = []

    def add(self, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> float | None:
        """Take a micro-batch in; the share of the step's global batch once it is whole, else None.

        Args:
            logprobs: (completions, tokens) float, of the policy being updated, nats.
            sampler_logprobs: (completions, tokens) float, as sampled; NaN where the sampler gave none.
            mask: (completions, tokens) bool.
        """
        ratios = (logprobs.detach() - sampler_logprobs).nan_to_num(nan=0.0)
        self._parts.append(log_weight_sums(masked_sum(ratios, mask, dim=1)))
        if not self.accelerator.sync_gradients:
            return None
        sums = self.accelerator.gather(torch.stack(self._parts))
        self._parts = []
        return effective_sample_share(sums).item()


class HeldOutDemonstrations:
    """Demonstrations that training never sees, and how likely models find them.

    Args:
        rows: in any of TRL's formats; those without a completion are left out.
        tokenizer: that of the models.
        chat_template_kwargs: further arguments of the chat template.
        max_length: the models' context, tokens.

    Raises:
        DataError: a row that cannot be tokenised, or exceeds the context.
        ModelError: a tokenizer or chat template that does not fit.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        tokenizer: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        max_length: float = math.inf,
    ) -> None:
        self.pairs: list[Encoded] = []
        for number, row in enumerate(rows, start=1):
            if row.get("completion") is None:
                continue
            try:
                pairs = encode_pairs(row, tokenizer, chat_template_kwargs=chat_template_kwargs)
            except DataError as error:
                raise DataError(f"eval_dataset, row {number}: {error}") from None
            longest = max(len(pair.prompt_ids) + len(pair.completion_ids) for pair in pairs)
            if longest > max_length:
                raise DataError(
                    f"eval_dataset, row {number}: {longest} tokens exceed the model's context of {max_length}: drop it"
                )
            self.pairs += pairs

    def nll(self, model: Any, accelerator: Accelerator, token_budget: int) -> float:
        """Negative log-likelihood of their actions: `-sum log pi(y_t | x, y_<t) / tokens`, EOS included.

        The demonstrations are shared out among the processes; every process gets the whole result.

        Args:
            model: causal LM.
            accelerator: joins the processes.
            token_budget: tokens in one forward pass.

        Returns:
            Nats per token.

        Raises:
            NumericalError: the model gave NaN or infinity.
        """
        mine = self.pairs[accelerator.process_index :: accelerator.num_processes]
        scores = score_completions(
            model,
            [pair.prompt_ids for pair in mine],
            [pair.completion_ids for pair in mine],
            token_budget=token_budget,
        )
        total = sum(float(values.double().sum()) for values in scores.logprobs)
        count = sum(len(values) for values in scores.logprobs)
        sums = torch.tensor([total, float(count)], device=accelerator.device)
        logprob, tokens = accelerator.reduce(sums, reduction="sum").tolist()
        return float(-logprob / tokens)
