"""What DPRTrainer logs besides TRL's metrics: numbers of the global batch that help to tell whether it works."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from densepath.core.estimator import Estimator
from densepath.core.masks import lengths_to_mask, masked_sum
from densepath.core.mixture import Cap, capped_weights
from densepath.core.monitors import correlation, effective_sample_share, log_weight_sums, ngram_counts
from densepath.core.objective import kl_estimate
from densepath.core.rewards import baseline_relative
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.nan_stop import check_finite
from densepath.trainers.rollout import TOKEN_VALUES, Credited, pad_rows, rollout_flops

SPENT = ("flops", "samples")
"""Metrics that are sums over what a log is of, not means."""
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


@dataclass(frozen=True)
class RolloutMonitor:
    """Metrics of a generation batch, over all processes: an observer, which changes nothing.

    Attributes:
        accelerator: joins the processes.
        reward_names: of TRL's reward functions, the dense reward first.
        held_out_ref: a reference that the reward does not use; None for none.
        token_budget: tokens in one forward pass of it.
        parameters: of the policy, for the count of FLOPs.
        frozen: how many frozen models score a batch; likewise.
        num_iterations: updates on a batch; likewise.
        cap: of a completion's reward; None for none.
        beta: coefficient of the KL to SFT.
    """

    accelerator: Accelerator
    reward_names: Sequence[str]
    held_out_ref: FrozenPolicy | None
    token_budget: int
    parameters: int
    frozen: int
    num_iterations: int
    cap: Cap | None = None
    beta: float = 0.0

    def __call__(self, credited: Credited) -> dict[str, float]:
        """Metrics by name; those that are undefined are left out.

        Raises:
            NumericalError: an advantage is NaN or infinite.
        """
        accelerator, scored, sampled = self.accelerator, credited.scored, credited.scored.sampled
        check_finite("advantages", credited.credit.advantages, accelerator)
        metrics = self._kl_and_reward(credited)
        if credited.credit.shares is not None:
            metrics["all_action_weight"] = float(accelerator.gather(credited.credit.shares.contiguous()).mean())
        if self.cap is not None:
            metrics |= self._capped(credited)
        flops = torch.tensor(rollout_flops(scored, self.parameters, self.frozen, self.num_iterations))
        metrics["flops"] = accelerator.reduce(flops.to(accelerator.device), reduction="sum").item()
        metrics["samples"] = float(len(sampled.completion_ids) * accelerator.num_processes)
        rows = [torch.tensor(ids) for ids in sampled.completion_ids]
        ids = pad_sequence(rows, batch_first=True).to(credited.batch.mask.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        there = lengths_to_mask(lengths, ids.shape[1])  # truncated ones count, even where the loss leaves them out
        own = sampled.own_tokens([torch.ones(len(row), dtype=torch.long) for row in rows])
        there &= pad_sequence(own, batch_first=True).to(there.device).bool()  # not what a tool wrote
        metrics["completions/distinct_4"] = distinct_ngrams(ids, there, accelerator)
        if self.held_out_ref is not None:
            scores = self.held_out_ref.score(sampled.prompt_ids, sampled.completion_ids, self.token_budget)
            sft_logprobs, other = pad_rows(scored.scores.sft_logprobs, there), pad_rows(scores.logprobs, there)
            metrics["reward_held_out_ref"] = held_out_reward(sft_logprobs, other, there, accelerator)
        assert scored.functions is not None
        dense, *others = scored.functions.reported.T.tolist()
        metrics |= reward_correlations(dense, dict(zip(self.reward_names[1:], others, strict=True)))
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _capped(self, credited: Credited) -> dict[str, float]:
        """Share of the completions at the cap, `Z = E_SFT[min(1, exp(alpha (R - kappa) / beta))]`, and 1 / Z.

        Z is the mean over completions weighted by pi_SFT / pi_theta: the plain mean before the first update.
        """
        assert self.cap is not None
        batch, accelerator = credited.batch, self.accelerator
        ratios = torch.tensor(credited.scored.sums(), device=batch.mask.device)
        towards_sft = -kl_estimate(batch.policy_logprobs, batch.sft_logprobs, batch.mask)
        counts = batch.mask.any(dim=1)
        ratios, towards_sft, counts = map(accelerator.gather, (ratios, towards_sft, counts))
        ratios, towards_sft = ratios[counts], towards_sft[counts]
        if not len(ratios):
            return {}
        z = float(towards_sft.softmax(dim=0) @ capped_weights(ratios, *self.cap, self.beta))
        share = float((ratios >= self.cap.cap).float().mean())
        return {"capped/share": share, "capped/z": z, "capped/growth": 1 / z if z > 0 else math.nan}

    def _kl_and_reward(self, credited: Credited) -> dict[str, float]:
        """KL to SFT a token and a completion, and the reward a token, nats; the KL is exact where it is known.

        Completions that the loss leaves out, as truncated ones may be, count for none of them.
        """
        batch, mask = credited.batch, credited.batch.mask
        if credited.scored.state_kl:
            kl = masked_sum(pad_rows(credited.scored.state_kl, mask), mask, dim=1)
        else:
            kl = kl_estimate(batch.policy_logprobs, batch.sft_logprobs, mask)
        counts = mask.sum().float(), mask.any(dim=1).sum().float()
        totals = torch.stack([kl.sum(), masked_sum(batch.rewards, mask), *counts])
        kl_sum, reward_sum, tokens, rows = self.accelerator.reduce(totals, reduction="sum").tolist()
        return {
            "kl": kl_sum / max(tokens, 1.0),
            "kl_sequence": kl_sum / max(rows, 1.0),
            "reward_per_token": reward_sum / max(tokens, 1.0),
        }


def loss_metrics(values: Tensor, mask: Tensor, accelerator: Accelerator, estimator: Estimator) -> dict[str, float]:
    """Means over the tokens of all processes of what a loss handed back; what is not used is left out.

    Args:
        values: `TOKEN_VALUES`.
        mask: (completions, tokens) bool.
        accelerator: joins the processes.
        estimator: says what is used.
    """
    sums = [masked_sum(each.float(), mask) for each in values]
    *totals, tokens = accelerator.reduce(torch.stack([*sums, mask.sum().float()]), reduction="sum").tolist()
    means = {name: total / max(tokens, 1.0) for name, total in zip(TOKEN_VALUES, totals, strict=True)}
    used = {"entropy": True, "state_kl": not estimator.kl_in_return, "clip_ratio": estimator.epsilons is not None}
    return {name: means[name] for name, counts in used.items() if counts}


class EffectiveSampleSize:
    """Effective share of the completions of an optimizer step, weighted by `pi_theta / pi_sampler`.

    1 while the policy is the one that sampled; it falls with further updates on one batch, and with a sampler whose
    numerics differ from the trainer's.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._parts: list[Tensor] = []

    def observe(self, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
        """Take a micro-batch in; `effective_sample_size` of the step's global batch once it is whole.

        Args:
            logprobs: (completions, tokens) float, of the policy being updated, nats.
            sampler_logprobs: (completions, tokens) float, as sampled; NaN where the sampler gave none.
            mask: (completions, tokens) bool.
        """
        ratios = (logprobs.detach() - sampler_logprobs).nan_to_num(nan=0.0)
        self._parts.append(log_weight_sums(masked_sum(ratios, mask, dim=1)))
        if not self.accelerator.sync_gradients:
            return {}
        sums = self.accelerator.gather(torch.stack(self._parts))
        self._parts = []
        return {"effective_sample_size": effective_sample_share(sums).item()}
