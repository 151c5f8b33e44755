"""Policy, SFT model and references over the whole vocabulary at the states of a rollout, a chunk of tokens at a time.

What is kept of the frozen models between the rollout and its loss are their last hidden states, (tokens, width) each:
distributions are made from them with the heads when they are needed, in float32, and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densepath.core.heads import Head, chunked_loss, head_logprobs, token_chunks
from densepath.core.logprobs import entropy_of_logprobs, kl_of_logprobs
from densepath.core.objective import (
    all_action_loss,
    clipped_loss,
    expected_rewards,
    reinforce_loss,
    state_kl_loss,
)
from densepath.core.rewards import reference_logprobs
from densepath.models.logits import plain_head
from densepath.models.scoring import check_finite, naming
from densepath.rewards.dense import DenseReward, RewardKind
from densepath.rewards.scores import DenseScores
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.rollout import Rollout, penalised_rewards

TOKEN_VALUES = ("logprobs", "entropy", "state_kl", "clip_ratio")
"""What a loss hands back of each token, in this order: (values, completions, tokens), 0 where there is none."""
_MODELS = {"sft_logprobs": "the SFT model", "ref_logprobs": "the reference", "policy_logprobs": "the policy"}


def plain_head_of(model: Any) -> Head:
    """A model's head; `choose_estimator` has refused models without a plain one."""
    head = plain_head(model)
    assert head is not None
    return head


class WholeVocabulary:
    """What the trainer computes from whole distributions.

    Args:
        reward: the dense reward, whose models are scored.
        args: the trainer's arguments.
        all_action: whether the immediate reward is taken over all actions; else only the KL at each state is.
        chunk_tokens: tokens projected through the heads at once; None bounds the memory of a chunk.
    """

    def __init__(
        self, reward: DenseReward, args: DPRConfig, *, all_action: bool, chunk_tokens: int | None = None
    ) -> None:
        self.reward = reward
        self.args = args
        self.all_action = all_action
        self.chunk_tokens = chunk_tokens
        self.policies = (reward.sft, *reward.refs)

    def heads(self) -> list[Head]:
        """Heads of the SFT model and the references; those on one base are one head."""
        found = {id(policy.model): plain_head_of(policy.model).lifted() for policy in self.policies}
        return [found[id(policy.model)] for policy in self.policies]

    def action_rewards(self, policy: Tensor, sft: Tensor, refs: Sequence[Tensor]) -> Tensor:
        """`q(s, .)` from log-probabilities, elementwise: the dense share of the reward less the return's KL terms."""
        mask = torch.ones_like(policy, dtype=torch.bool)
        rewards = self.args.dense_reward_weight * self.reward.from_logprobs(sft, refs, mask)
        ref = reference_logprobs(refs, self.reward.reference_mean) if refs else None
        return penalised_rewards(rewards, policy, sft, ref, self.args, mask)

    def visit(self, rollout: Rollout, hidden: Sequence[Tensor], head: Head, eos_token_ids: Sequence[int]) -> None:
        """Fill a rollout: hidden states of the frozen models, rewards, and (all actions) expected rewards.

        Args:
            rollout: with prompt and completion ids.
            hidden: the policy's hidden states for each completion; not read unless all actions are used.
            head: the policy's head.
            eos_token_ids: ids that end a completion.

        Raises:
            NumericalError: NaN or infinity, with the model and the place.
        """
        ids = rollout.prompt_ids, rollout.completion_ids
        kept = [frozen.hidden_states(*ids, self.args.score_token_budget) for frozen in self.policies]
        rollout.frozen_hidden = list(zip(*kept, strict=True))
        if self.reward.kind is RewardKind.INVERSE_BELLMAN:
            rollout.scores = self.reward.score_ids(*ids, eos_token_ids=eos_token_ids)
            return
        found = self._visited(hidden, head.lifted(), kept, rollout.completion_ids)
        lengths = [len(completion) for completion in rollout.completion_ids]
        rows = {name: list(torch.split(values.cpu(), lengths)) for name, values in found.items()}
        for name, model in _MODELS.items():
            if name in rows:
                with naming(model):
                    check_finite(rows[name], rollout.completion_ids)
        rollout.scores = DenseScores(
            rows["rewards"],
            rows["sft_logprobs"],
            rows.get("ref_logprobs", []),
            rows["sft_entropies"],
            [list(completion) for completion in rollout.completion_ids],
        )
        check_finite(rollout.scores.rewards, rollout.completion_ids, "dense reward")
        if self.all_action:
            rollout.policy_logprobs = rows["policy_logprobs"]
            rollout.expected = rows["expected"]
            rollout.state_kl = rows["state_kl"]

    @torch.no_grad()
    def _visited(
        self, own: Sequence[Tensor], own_head: Head, kept: list[list[Tensor]], completion_ids: list[list[int]]
    ) -> dict[str, Tensor]:
        """(tokens,) values of all completions, one after the other, by name."""
        hidden = [torch.cat(rows) for rows in kept]
        device = hidden[0].device
        heads = self.heads()
        policy = torch.cat(list(own)) if self.all_action else None
        tokens = torch.tensor([token for row in completion_ids for token in row], dtype=torch.long, device=device)
        found: dict[str, list[Tensor]] = {}
        for chunk in token_chunks(len(tokens), len(own_head.weight), self.chunk_tokens):
            ids = tokens[chunk].unsqueeze(-1)
            sft, *refs = (head_logprobs(states[chunk], head) for states, head in zip(hidden, heads, strict=True))
            chosen_sft = sft.gather(-1, ids).squeeze(-1)
            chosen_refs = [ref.gather(-1, ids).squeeze(-1) for ref in refs]
            counts = torch.ones_like(chosen_sft, dtype=torch.bool)
            values = {
                "rewards": self.reward.from_logprobs(chosen_sft, chosen_refs, counts),
                "sft_logprobs": chosen_sft,
                "sft_entropies": entropy_of_logprobs(sft),
            }
            if refs:
                values["ref_logprobs"] = reference_logprobs(chosen_refs, self.reward.reference_mean)
            if policy is not None:
                policy_logprobs = head_logprobs(policy[chunk], own_head)
                values["policy_logprobs"] = policy_logprobs.gather(-1, ids).squeeze(-1)
                values["expected"] = expected_rewards(policy_logprobs, self.action_rewards(policy_logprobs, sft, refs))
                values["state_kl"] = kl_of_logprobs(policy_logprobs, sft)
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        return {name: torch.cat(parts) for name, parts in found.items()}


@dataclass(frozen=True)
class MicroBatchLoss:
    """The loss of one micro-batch from the policy's hidden states: `models.packed_forward.TokenLoss`.

    Attributes:
        vocabulary: the models and arguments.
        frozen_hidden: hidden states of the frozen models, by completion and model.
        prompt_width: columns of the padded prompts, which precede the completions'.
        advantages: (completions, tokens) float.
        state_weights: (completions, tokens) float, factor on what is an expectation at a state.
        all_action_weights: (completions,) float, share of the all-action estimate; None where there is none.
        old_logprobs: (completions, tokens) float under the policy that sampled, where updates are clipped.
        normalizer: what the sum is divided by.
        epsilon_low: see `clipped_loss`.
        epsilon_high: likewise.
    """

    vocabulary: WholeVocabulary
    frozen_hidden: Sequence[tuple[Tensor, ...]]
    prompt_width: int
    advantages: Tensor
    state_weights: Tensor
    all_action_weights: Tensor | None
    old_logprobs: Tensor | None
    normalizer: float | Tensor
    epsilon_low: float
    epsilon_high: float

    def __call__(
        self, hidden: Tensor, head: Head, ids: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and `TOKEN_VALUES` of the tokens at (rows, columns)."""
        padded = torch.zeros(len(TOKEN_VALUES), *self.advantages.shape, device=hidden.device)
        if not len(ids):
            return torch.zeros((), device=hidden.device), padded
        columns = columns - self.prompt_width
        lengths = torch.tensor([len(states[0]) for states in self.frozen_hidden], device=rows.device)
        places = (lengths.cumsum(0) - lengths)[rows] + columns
        heads = self.vocabulary.heads()
        kept = [torch.cat([states[k] for states in self.frozen_hidden]) for k in range(len(heads))]
        advantages, weights = self.advantages[rows, columns], self.state_weights[rows, columns]
        old = None if self.old_logprobs is None else self.old_logprobs[rows, columns]
        shares = None if self.all_action_weights is None else self.all_action_weights[rows]

        def of_chunk(logprobs: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                sft, *refs = (
                    head_logprobs(states[places[chunk]], frozen) for states, frozen in zip(kept, heads, strict=True)
                )
                action_rewards = None
                if shares is not None:
                    action_rewards = self.vocabulary.action_rewards(logprobs.detach(), sft, refs)
                anchor = None if self.vocabulary.args.kl_in_return else sft
                del sft, refs  # each is as large as the chunk's log-probabilities
            return self._of_tokens(
                logprobs,
                logprobs.gather(-1, ids[chunk].unsqueeze(-1)).squeeze(-1),
                action_rewards,
                anchor,
                advantages[chunk],
                weights[chunk],
                None if shares is None else shares[chunk],
                None if old is None else old[chunk],
            )

        loss, values = chunked_loss(of_chunk, hidden, head, chunk_tokens=self.vocabulary.chunk_tokens)
        padded[:, rows, columns] = values.to(padded)
        return loss, padded

    def _of_tokens(
        self,
        logprobs: Tensor,
        chosen: Tensor,
        action_rewards: Tensor | None,
        sft: Tensor | None,
        advantages: Tensor,
        weights: Tensor,
        shares: Tensor | None,
        old: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of a chunk, each estimator's formula being one of `core.objective`."""
        mask = torch.ones_like(chosen, dtype=torch.bool)
        clip_ratio, state_kl = torch.zeros_like(chosen), torch.zeros_like(chosen)
        if action_rewards is not None and shares is not None:
            expected = weights * shares * expected_rewards(logprobs, action_rewards)
            loss, _ = all_action_loss(chosen, expected, advantages, mask, self.normalizer)
        elif old is None:
            loss, _ = reinforce_loss(chosen, advantages, mask, self.normalizer)
        else:
            loss, metrics = clipped_loss(
                chosen, old, advantages, mask, self.normalizer, self.epsilon_low, self.epsilon_high
            )
            clip_ratio += metrics["clip_ratio"]
        if sft is not None:
            state_kl = kl_of_logprobs(logprobs, sft)
            loss = loss + state_kl_loss(weights * state_kl, self.vocabulary.args.beta, mask, self.normalizer)[0]
        with torch.no_grad():
            entropies = entropy_of_logprobs(logprobs)
            return loss, torch.stack([chosen, entropies, state_kl, clip_ratio])
