"""One generation batch on its way to a gradient: `Sampled`, then `Scored`, then `Credited`, then its micro-batches.

Each record is frozen; the functions are what is computed between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from densepath.core.estimator import Batch, Credit, Estimator, Returns
from densepath.core.masks import keep
from densepath.core.mixture import Cap, capped_rewards
from densepath.core.rewards import hybrid_rewards
from densepath.rewards.scores import DenseScores

TOKEN_VALUES = ("logprobs", "entropy", "state_kl", "clip_ratio")
"""What a loss hands back of each token, in this order: (values, completions, tokens), 0 where there is none."""


@dataclass(frozen=True)
class Sampled:
    """What this process sampled, in the order in which it was generated.

    Attributes:
        prompt_ids: token ids of each completion's prompt.
        completion_ids: sampled ids, EOS included; none yet where the sampler failed.
        logprobs: log-probabilities that the sampler reported, nats; None if it reports none.
        tool_mask: for each token of a completion, 0 where a tool wrote it; None without tools.
        hidden: last hidden states of the policy where it sampled, (tokens, width) each; empty where none are kept.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] | None = None
    tool_mask: list[list[int]] | None = None
    hidden: Sequence[Tensor] = ()

    def own_tokens(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The values of each completion's tokens, 0 where a tool wrote them."""
        if self.tool_mask is None:
            return list(rows)
        return [row * torch.tensor(own) for row, own in zip(rows, self.tool_mask, strict=True)]


@dataclass(frozen=True)
class FunctionRewards:
    """What TRL's reward functions returned.

    Attributes:
        reported: (completions of all processes, 1 + functions) float, a number each, the dense reward's first.
        first: which row is the first of this process.
        count: how many are this process's.
        per_token: by function, (tokens,) float for each completion, where it returned one number a token.
    """

    reported: Tensor
    first: int
    count: int
    per_token: Mapping[int, list[Tensor]]

    @property
    def own(self) -> Tensor:
        """(completions, functions) float, of this process."""
        return self.reported[self.first : self.first + self.count, 1:]


@dataclass(frozen=True)
class Scored:
    """A batch with what the models say of it; ragged, one tensor a completion.

    Attributes:
        sampled: the batch; its hidden states were read.
        scores: dense rewards of the sampled tokens, with the log-probabilities they were made from.
        policy_logprobs: log pi_theta of the sampled tokens under the trainer's own policy, nats; empty until known.
        policy_passes: forward passes of the policy over the completions beside sampling and training.
        expected: expected immediate reward at each state, KL terms included, nats; empty unless all actions are used.
        state_kl: exact KL to the SFT policy at each state, nats; likewise.
        log_ratios: R_{<t}, the reward before each token, nats; empty unless it is capped and all actions are used.
        frozen_hidden: last hidden states of the SFT model and of each reference, (tokens, width); empty where no whole
            distribution is needed.
        functions: what the reward functions say; None until they were asked.
    """

    sampled: Sampled
    scores: DenseScores
    policy_logprobs: Sequence[Tensor] = ()
    policy_passes: int = 0
    expected: Sequence[Tensor] = ()
    state_kl: Sequence[Tensor] = ()
    log_ratios: Sequence[Tensor] = ()
    frozen_hidden: Sequence[tuple[Tensor, ...]] = ()
    functions: FunctionRewards | None = None

    def sums(self) -> list[float]:
        """Dense reward of each completion, nats: what TRL logs as `reward`."""
        return [float(row.sum()) for row in self.sampled.own_tokens(self.scores.rewards)]


@dataclass(frozen=True)
class Credited:
    """A batch with its advantages, padded: (completions, tokens) each.

    Attributes:
        scored: the batch, without the hidden states that the micro-batches hold.
        batch: what the estimator was given.
        credit: what it made of it, for this process's completions.
    """

    scored: Scored
    batch: Batch
    credit: Credit


Rollout = Sampled | Scored | Credited
"""The generation batch at hand, as far as it has come."""


@dataclass(frozen=True)
class MicroBatch:
    """What the loss of one micro-batch is computed from; (completions, tokens) each unless it says otherwise.

    Attributes:
        prompt_ids: (completions, prompt tokens) int, padded on the left.
        prompt_mask: likewise.
        completion_ids: int, padded on the right.
        completion_mask: which of them are there.
        mask: bool, which of them count.
        advantages: float, times the weight on the score function.
        state_weights: float, factor on what is an expectation at a state.
        normalizer: what the sum is divided by.
        old_logprobs: float under the policy that sampled, where updates are clipped; else None.
        shares: (completions,) float of the all-action estimate; None without.
        log_ratios: float, the reward before each token, nats; None unless it is capped and all actions are used.
        frozen_hidden: hidden states of the frozen models, by completion and model; empty where they are not needed.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    mask: Tensor
    advantages: Tensor
    state_weights: Tensor
    normalizer: float | Tensor
    old_logprobs: Tensor | None
    shares: Tensor | None
    log_ratios: Tensor | None
    frozen_hidden: Sequence[tuple[Tensor, ...]]

    @classmethod
    def of(cls, inputs: Mapping[str, Any], normalizer: float | Tensor, importance_mode: str) -> MicroBatch:
        """The record of what TRL hands to a loss.

        Where another engine sampled, `w_t = pi_theta(a_t|s_t) / mu(a_t|s_t)`, cut off as TRL's mode says, corrects for
        the action and belongs to the score function alone: an expectation over all actions does not depend on who
        drew one. A ratio of whole sequences corrects for the states too, and belongs to both.

        Args:
            inputs: holds `importance_sampling_ratio` where there is something to correct.
            normalizer: what the sum is divided by.
            importance_mode: TRL's `vllm_importance_sampling_mode`.

        Source: the ratios are TRL's; where they belong with expectations is derived in docs/method.md.
        """
        mask = loss_mask(inputs)
        ones = torch.ones(mask.shape, device=mask.device)
        ratio = inputs.get("importance_sampling_ratio")
        weights = ones if ratio is None else ratio * ones
        return cls(
            prompt_ids=inputs["prompt_ids"],
            prompt_mask=inputs["prompt_mask"],
            completion_ids=inputs["completion_ids"],
            completion_mask=inputs["completion_mask"],
            mask=mask,
            advantages=inputs["advantages"] * weights,
            state_weights=weights if importance_mode.startswith("sequence") else ones,
            normalizer=normalizer,
            old_logprobs=inputs.get("old_per_token_logps"),
            shares=inputs.get("all_action_weights"),
            log_ratios=inputs.get("log_ratios"),
            frozen_hidden=inputs.get("frozen_hidden", ()),
        )

    @property
    def input_ids(self) -> Tensor:
        """(completions, all tokens) int."""
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """(completions, all tokens)."""
        return torch.cat([self.prompt_mask, self.completion_mask], dim=1)


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """(completions, tokens) bool: True for the policy's own tokens; what a tool answered does not count."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def pad_rows(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """(completions, width) float32 of ragged rows, on the device and with the width of `like`."""
    padded = pad_sequence([row.float() for row in rows], batch_first=True)
    return torch.nn.functional.pad(padded, (0, like.shape[1] - padded.shape[1])).to(like.device)


def batch_of(
    scored: Scored, mask: Tensor, external: Tensor | None, dense_weight: float, cap: Cap | None = None
) -> Batch:
    """What an estimator needs of a scored batch, padded.

    Args:
        scored: with log-probabilities of the policy.
        mask: (completions, tokens) bool, see `loss_mask`.
        external: (completions, tokens) float, the reward functions' weighted sum; None if it is not trained on.
        dense_weight: share of the dense reward beside it.
        cap: of a completion's dense reward, before it is mixed; None for none.
    """
    rewards = keep(pad_rows(scored.scores.rewards, mask), mask)
    if cap is not None:
        rewards = capped_rewards(rewards, mask, *cap)
    if external is not None:
        rewards = hybrid_rewards(rewards, external, mask, dense_weight)
        external = hybrid_rewards(torch.zeros_like(external), external, mask, dense_weight)
    refs = scored.scores.ref_logprobs
    return Batch(
        rewards,
        pad_rows(scored.policy_logprobs, mask),
        pad_rows(scored.scores.sft_logprobs, mask),
        mask,
        pad_rows(refs, mask) if refs else None,
        pad_rows(scored.expected, mask) if scored.expected else None,
        external,
    )


def credit_of(batch: Batch, estimator: Estimator, num_generations: int, accelerator: Accelerator) -> Credit:
    """The credit of this process's completions, who are compared with those of all processes.

    Args:
        batch: of this process.
        estimator: of the run.
        num_generations: completions of a prompt.
        accelerator: joins the processes.
    """
    found, mask = estimator.returns(batch), batch.mask
    if accelerator.num_processes == 1:
        return estimator.credit(found, mask, num_generations)
    rows, width = mask.shape
    mine = slice(accelerator.process_index * rows, (accelerator.process_index + 1) * rows)

    def of_all(values: Tensor) -> Tensor:
        gathered: Tensor = accelerator.gather(accelerator.pad_across_processes(values, dim=1))
        return gathered

    after, noise = (None if values is None else of_all(values) for values in (found.after, found.noise))
    # As int64: padding turns a bool tensor into one, and a process that has nothing to pad would keep its own.
    everywhere = of_all(mask.long()).bool()
    credit = estimator.credit(Returns(of_all(found.sampled), after, noise), everywhere, num_generations)
    shares = None if credit.shares is None else credit.shares[mine]
    return Credit(credit.advantages[mine, :width], shares)


def rollout_flops(scored: Scored, parameters: int, frozen: int, num_iterations: int) -> float:
    """FLOPs of one generation batch: sample, score the frozen models, forward and backward of the policy.

    2 a parameter and token forward, 4 backward; a prompt that completions share is counted once, as computed. Where
    another engine sampled, the policy makes a pass of its own.

    Args:
        scored: the batch.
        parameters: of the policy; the frozen models are taken to be of its size.
        frozen: how many frozen models score it.
        num_iterations: updates on it.
    """
    prompts = {tuple(ids) for ids in scored.sampled.prompt_ids}
    completions = sum(map(len, scored.sampled.completion_ids))
    tokens = sum(map(len, prompts)) + completions
    passes = 2 + 2 * frozen + 6 * num_iterations + 2 * scored.policy_passes
    return float(tokens * parameters * passes)
