"""What is computed from one rollout: the KL-penalised rewards, their returns, and the advantages of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from densepath.core.control import control_weights
from densepath.core.hybrid import hybrid_rewards
from densepath.core.masks import masked_sum
from densepath.core.objective import kl_estimate
from densepath.core.returns import (
    Baseline,
    baseline,
    kl_penalised_rewards,
    returns_after,
    returns_to_go,
    sequence_returns,
    whiten,
)
from densepath.rewards.scores import DenseScores
from densepath.trainers.dpr_config import DPRConfig, RewardLevel


@dataclass
class Rollout:
    """One generation batch of this process, in the order in which it was generated.

    Attributes:
        prompt_ids: token ids of each completion's prompt.
        completion_ids: sampled ids, EOS included.
        sampling_logprobs: log-probabilities that the sampler reported, nats; None if it reports none.
        tool_mask: for each token of a completion, 0 where a tool wrote it; None without tools.
        scores: dense rewards of the sampled tokens, with the log-probabilities they were made from.
        policy_logprobs: log pi_theta of the sampled tokens under the trainer's own policy, nats.
        function_rewards: (completions, functions) float, what TRL's reward functions returned, summed over tokens.
        external: (completions, tokens) float, their weighted sum where it belongs; None if it is not trained on.
        advantages: (completions, tokens) float, once they are computed.
        policy_hidden: last hidden states of the policy where it sampled, (tokens, width), until they are read; empty
            where the sampler does not keep them.
        policy_passes: forward passes of the policy over the completions beside sampling and training.
        frozen_hidden: last hidden states of the SFT model and of each reference, (tokens, width); empty where no whole
            distribution is needed.
        expected: expected immediate reward at each state, KL terms included, nats; empty unless all actions are used.
        state_kl: exact KL to the SFT policy at each state, nats; likewise.
        all_action_weights: (completions,) share of the all-action estimate; likewise.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    sampling_logprobs: list[list[float]] | None = None
    tool_mask: list[list[int]] | None = None
    scores: DenseScores | None = None
    policy_logprobs: list[Tensor] = field(default_factory=list)
    function_rewards: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    external: Tensor | None = None
    advantages: Tensor | None = None
    policy_hidden: list[Tensor] = field(default_factory=list)
    policy_passes: int = 0
    frozen_hidden: list[tuple[Tensor, ...]] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)
    state_kl: list[Tensor] = field(default_factory=list)
    all_action_weights: Tensor = field(default_factory=lambda: torch.zeros(0))


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
    ref_logprobs = pad_rows(rollout.scores.ref_logprobs, mask) if rollout.scores.ref_logprobs else None
    penalised = penalised_rewards(rewards, policy_logprobs, sft_logprobs, ref_logprobs, args, mask)
    if RewardLevel(args.reward_level) is RewardLevel.SEQUENCE:
        returns = [sequence_returns(penalised, mask)]
    else:
        returns = [returns_to_go(penalised, mask, args.gamma)]
    kl = kl_estimate(policy_logprobs, sft_logprobs, mask)
    if rollout.expected:
        expected, external = pad_rows(rollout.expected, mask), torch.zeros_like(rewards)
        if rollout.external is not None:  # known of the sampled token alone, so its return keeps the present one
            external = hybrid_rewards(external, rollout.external, mask, args.dense_reward_weight)
        returns += [
            returns_after(expected, mask, args.gamma) + returns_to_go(external, mask, args.gamma),
            returns_to_go(penalised - external - expected, mask, args.gamma),
        ]
        kl = masked_sum(pad_rows(rollout.state_kl, mask), mask, dim=1)
    counts = mask.sum().float(), torch.tensor(float(len(mask)), device=mask.device)
    totals = torch.stack([kl.sum(), masked_sum(rewards, mask), *counts])
    kl_sum, reward_sum, tokens, rows = accelerator.reduce(totals, reduction="sum").tolist()
    metrics = {
        "kl": kl_sum / max(tokens, 1.0),
        "kl_sequence": kl_sum / max(rows, 1.0),
        "reward_per_token": reward_sum / max(tokens, 1.0),
    }
    advantages, weights = _advantages(returns, mask, args, num_generations, accelerator)
    if weights is not None:
        rollout.all_action_weights = weights[0]
        metrics["all_action_weight"] = weights[1]
    return advantages, metrics


def penalised_rewards(
    rewards: Tensor, policy: Tensor, sft: Tensor, ref: Tensor | None, args: DPRConfig, mask: Tensor
) -> Tensor:
    """Rewards less the KL terms of the return, elementwise: those of sampled tokens or of whole distributions."""
    if args.kl_in_return and args.beta > 0:
        rewards = kl_penalised_rewards(rewards, policy, sft, args.beta, mask)
    if args.ref_beta > 0 and ref is not None:
        rewards = kl_penalised_rewards(rewards, policy, ref, args.ref_beta, mask)
    return rewards


def _advantages(
    returns: Sequence[Tensor], mask: Tensor, args: DPRConfig, num_generations: int, accelerator: Accelerator
) -> tuple[Tensor, tuple[Tensor, float] | None]:
    """Returns less the baseline over the *global* batch, and the all-action weights; this process's rows of them.

    Args:
        returns: sampled ones; with all actions also those after each token in expectation, and the noise between.
        mask: see `advantages_of`.
        args: likewise.
        num_generations: likewise.
        accelerator: likewise.

    Returns:
        (completions, tokens) advantages; (completions,) weights and their mean over the global batch, or None.
    """
    kind = Baseline(args.baseline)
    if num_generations < 2 and kind is Baseline.LEAVE_ONE_OUT:
        kind = Baseline.NONE
    local, width = mask.shape
    if accelerator.num_processes > 1:
        returns = [accelerator.gather(accelerator.pad_across_processes(each, dim=1)) for each in returns]
        # As int64: padding turns a bool tensor into one, and a process that has nothing to pad would keep its own.
        mask = accelerator.gather(accelerator.pad_across_processes(mask.long(), dim=1)).bool()

    def less_baseline(values: Tensor) -> Tensor:
        return torch.where(mask, values - baseline(kind, values, mask, num_generations), torch.zeros_like(values))

    advantages = less_baseline(returns[0])
    start = accelerator.process_index * local
    if len(returns) == 1:
        if args.whiten_advantages:
            advantages = whiten(advantages, mask)
        return advantages[start : start + local, :width], None
    sampled, after, noise = returns
    if args.all_action_weight is None:
        weights = control_weights(sampled, noise, mask)
    else:
        weights = torch.full_like(sampled[:, 0], args.all_action_weight)
    share = weights.unsqueeze(1)
    advantages = (1 - share) * advantages + share * less_baseline(after)
    return advantages[start : start + local, :width], (weights[start : start + local], float(weights.mean()))


def rollout_flops(rollout: Rollout, parameters: int, frozen: int, num_iterations: int) -> float:
    """FLOPs of one generation batch: sample, score the frozen models, forward and backward of the policy.

    2 a parameter and token forward, 4 backward; a prompt that completions share is counted once, as computed. Where
    another engine sampled, the policy makes a pass of its own.

    Args:
        rollout: the batch.
        parameters: of the policy; the frozen models are taken to be of its size.
        frozen: how many frozen models score it.
        num_iterations: updates on it.
    """
    prompts = {tuple(ids) for ids in rollout.prompt_ids}
    completions = sum(map(len, rollout.completion_ids))
    tokens = sum(map(len, prompts)) + completions
    passes = 2 + 2 * frozen + 6 * num_iterations + 2 * rollout.policy_passes
    return float(tokens * parameters * passes)
