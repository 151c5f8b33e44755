"""What is computed from one rollout: the KL-penalised rewards, their returns, and the advantages of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from densepath.core.hybrid import hybrid_rewards
from densepath.core.masks import masked_sum
from densepath.core.objective import kl_estimate
from densepath.core.returns import Baseline, baseline, kl_penalised_rewards, returns_to_go, whiten
from densepath.rewards.scores import DenseScores
from densepath.trainers.dpr_config import DPRConfig


@dataclass
class Rollout:
    """One generation batch of this process, in the order in which it was generated.

    Attributes:
        prompt_ids: token ids of each completion's prompt.
        completion_ids: sampled ids, EOS included.
        sampling_logprobs: log-probabilities that the sampler reported, nats; None if it reports none.
        scores: dense rewards of the sampled tokens, with the log-probabilities they were made from.
        policy_logprobs: log pi_theta of the sampled tokens under the trainer's own policy, nats.
        function_rewards: (completions, functions) float, what TRL's reward functions returned, summed over tokens.
        external: (completions, tokens) float, their weighted sum where it belongs; None if it is not trained on.
        advantages: (completions, tokens) float, once they are computed.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    sampling_logprobs: list[list[float]] | None = None
    scores: DenseScores | None = None
    policy_logprobs: list[Tensor] = field(default_factory=list)
    function_rewards: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    external: Tensor | None = None
    advantages: Tensor | None = None


def loss_mask(inputs: dict[str, Any]) -> Tensor:
    """(completions, tokens) bool: True for the policy's own tokens; what a tool answered does not count."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def pad_rows(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """(completions, width) float32 of ragged rows, on the device and with the width of `like`."""
    padded = pad_sequence([row.float() for row in rows], batch_first=True)
    return torch.nn.functional.pad(padded, (0, like.shape[1] - padded.shape[1])).to(like.device)


def token_rewards(rollout: Rollout, mask: Tensor, args: DPRConfig) -> Tensor:
    """(completions, tokens) float: the dense reward of each token, mixed with the reward functions' if they count."""
    assert rollout.scores is not None
    rewards = torch.where(mask, pad_rows(rollout.scores.rewards, mask), torch.zeros(mask.shape, device=mask.device))
    if rollout.external is None:
        return rewards
    return hybrid_rewards(rewards, rollout.external, mask, args.dense_reward_weight)


def advantages_of(
    rollout: Rollout, mask: Tensor, args: DPRConfig, *, num_generations: int, accelerator: Accelerator
) -> tuple[Tensor, dict[str, float]]:
    """Advantages of a rollout's tokens, and metrics of the global batch.

    Args:
        rollout: with scores and policy log-probabilities.
        mask: (completions, tokens) bool, see `loss_mask`.
        args: the trainer's arguments.
        num_generations: completions per prompt.
        accelerator: joins the processes.

    Returns:
        (completions, tokens) float32 for this process's completions; metrics by name.
    """
    assert rollout.scores is not None
    rewards = token_rewards(rollout, mask, args)
    sft_logprobs = pad_rows(rollout.scores.sft_logprobs, mask)
    policy_logprobs = pad_rows(rollout.policy_logprobs, mask)
    penalised = kl_penalised_rewards(rewards, policy_logprobs, sft_logprobs, args.beta, mask)
    returns = returns_to_go(penalised, mask, args.gamma)
    kl = kl_estimate(policy_logprobs, sft_logprobs, mask)
    counts = mask.sum().float(), torch.tensor(float(len(mask)), device=mask.device)
    totals = torch.stack([kl.sum(), masked_sum(rewards, mask), *counts])
    kl_sum, reward_sum, tokens, rows = accelerator.reduce(totals, reduction="sum").tolist()
    metrics = {
        "kl": kl_sum / max(tokens, 1.0),
        "kl_sequence": kl_sum / max(rows, 1.0),
        "reward_per_token": reward_sum / max(tokens, 1.0),
    }
    return _less_baseline(returns, mask, args, num_generations, accelerator), metrics


def _less_baseline(
    returns: Tensor, mask: Tensor, args: DPRConfig, num_generations: int, accelerator: Accelerator
) -> Tensor:
    """Returns less the baseline over the *global* batch; this process's rows of it."""
    kind = Baseline(args.baseline)
    if num_generations < 2 and kind is Baseline.LEAVE_ONE_OUT:
        kind = Baseline.NONE
    local, width = returns.shape
    if accelerator.num_processes > 1:
        returns = accelerator.gather(accelerator.pad_across_processes(returns, dim=1))
        # As int64: padding turns a bool tensor into one, and a process that has nothing to pad would keep its own.
        mask = accelerator.gather(accelerator.pad_across_processes(mask.long(), dim=1)).bool()
    advantages = torch.where(mask, returns - baseline(kind, returns, mask, num_generations), torch.zeros_like(returns))
    if args.whiten_advantages:
        advantages = whiten(advantages, mask)
    start = accelerator.process_index * local
    return advantages[start : start + local, :width]


def rollout_flops(rollout: Rollout, parameters: int, frozen: int, num_iterations: int) -> float:
    """FLOPs of one generation batch: sample, score the frozen models, forward and backward of the policy.

    2 a parameter and token forward, 4 backward; a prompt that completions share is counted once, as computed.

    Args:
        rollout: the batch.
        parameters: of the policy; the frozen models are taken to be of its size.
        frozen: how many frozen models score it.
        num_iterations: updates on it.
    """
    prompts = {tuple(ids) for ids in rollout.prompt_ids}
    tokens = sum(map(len, prompts)) + sum(map(len, rollout.completion_ids))
    return float(tokens * parameters * (2 + 2 * frozen + 6 * num_iterations))
