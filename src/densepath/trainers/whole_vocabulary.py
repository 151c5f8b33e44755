"""Policy, SFT model and references over the whole vocabulary at the states of a rollout, a chunk of tokens at a time.

What is kept of the frozen models between the rollout and its loss are their last hidden states, (tokens, width) each:
distributions are made from them with the heads when they are needed, in float32, and never stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densepath.core.estimator import Estimator, Tokens
from densepath.core.heads import Head, chunked_loss, logprobs_in_parts
from densepath.core.logprobs import entropy_of_logprobs, kl_of_logprobs
from densepath.core.mixture import Cap, capped_increments, running_before
from densepath.core.objective import expected_rewards
from densepath.core.rewards import reference_logprobs
from densepath.models.logits import plain_head
from densepath.models.packing import IGNORED_LABEL
from densepath.models.scoring import check_finite, completion_hidden_states, naming
from densepath.rewards.dense import DenseReward, RewardKind
from densepath.rewards.scores import DenseScores
from densepath.trainers.rollout import TOKEN_VALUES, MicroBatch, Sampled, Scored

_MODELS = {"sft_logprobs": "the SFT model", "ref_logprobs": "the reference", "policy_logprobs": "the policy"}


def plain_head_of(model: Any) -> Head:
    """A model's head; `choose_estimator` has refused models without a plain one."""
    head = plain_head(model)
    assert head is not None
    return head


class Before(NamedTuple):
    """What was earned before tokens; (tokens,) each.

    Attributes:
        log_ratios: float, R_{<t}, nats.
        first: bool, whether no token came before.
    """

    log_ratios: Tensor
    first: Tensor


@dataclass(frozen=True)
class WholeVocabulary:
    """Rewards and loss from whole distributions.

    Attributes:
        reward: the dense reward, whose models are scored.
        estimator: of the run: all actions, or the sampled one with a KL at each state.
        dense_weight: share of the dense reward in a hybrid one.
        cap: of a completion's dense reward; None for none.
        token_budget: tokens in one forward pass.
        autocast: the trainer's; the frozen models stay in their own precision.
        chunk_tokens: tokens projected through the heads at once; None bounds the memory of a chunk.
    """

    reward: DenseReward
    estimator: Estimator
    dense_weight: float = 1.0
    cap: Cap | None = None
    token_budget: int = 2048
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    chunk_tokens: int | None = None

    def heads(self) -> list[Head]:
        """Heads of the SFT model and the references; those on one base are one head."""
        policies = self.reward.sft, *self.reward.refs
        found = {id(policy.model): plain_head_of(policy.model).lifted() for policy in policies}
        return [found[id(policy.model)] for policy in policies]

    def action_rewards(
        self, policy: Tensor, sft: Tensor, refs: Sequence[Tensor], before: Before | None = None
    ) -> Tensor:
        """`q(s, .)` from (tokens, vocabulary) log-probabilities: the dense reward's share less the return's KL terms.

        Args:
            policy: log pi_theta(.|s), nats.
            sft: log pi_SFT(.|s).
            refs: log pi_ref(.|s) of each reference.
            before: what was earned before each token; read where the reward is capped.
        """
        mask = torch.ones_like(policy, dtype=torch.bool)
        rewards = self.reward.from_logprobs(sft, refs, mask)
        if self.cap is not None:
            assert before is not None
            log_ratios, first = before.log_ratios.unsqueeze(-1), before.first.unsqueeze(-1)
            rewards = capped_increments(rewards, log_ratios, first, *self.cap)
        rewards = self.dense_weight * rewards
        ref = reference_logprobs(refs, self.reward.reference_mean) if refs else None
        return self.estimator.penalised(rewards, policy, sft, ref, mask)

    # -- scoring -----------------------------------------------------------------------------------------------

    def score(self, sampled: Sampled, policy: Any) -> Scored:
        """The batch with its dense rewards, the frozen models' hidden states, and (all actions) expected rewards.

        Args:
            sampled: with the policy's hidden states; they are computed where the sampler kept none.
            policy: the policy, unwrapped.

        Raises:
            NumericalError: NaN or infinity, with the model and the place.
        """
        all_action = self.estimator.all_action
        ids = sampled.prompt_ids, sampled.completion_ids
        own, missing = sampled.hidden, all_action and not sampled.hidden
        if missing:
            with self.autocast():  # as in the loss
                own = completion_hidden_states(policy, *ids, token_budget=self.token_budget)
        kept = [frozen.hidden_states(*ids, self.token_budget) for frozen in (self.reward.sft, *self.reward.refs)]
        sampled = dataclasses.replace(sampled, hidden=())
        hidden = list(zip(*kept, strict=True))
        if self.reward.kind is RewardKind.INVERSE_BELLMAN:
            scores = self.reward.score_ids(*ids, eos_token_ids=None)
            return Scored(sampled, scores, frozen_hidden=hidden)
        found = self.visited(sampled, own, plain_head_of(policy).lifted(), kept)
        scores = DenseScores(
            found["rewards"],
            found["sft_logprobs"],
            found.get("ref_logprobs", []),
            found["sft_entropies"],
            [list(completion) for completion in sampled.completion_ids],
        )
        return Scored(
            sampled,
            scores,
            policy_logprobs=found.get("policy_logprobs", []),
            policy_passes=int(missing),
            expected=found.get("expected", []),
            state_kl=found.get("state_kl", []),
            log_ratios=found.get("log_ratios", []),
            frozen_hidden=hidden,
        )

    @torch.no_grad()
    def visited(
        self, sampled: Sampled, own: Sequence[Tensor], own_head: Head, kept: Sequence[Sequence[Tensor]]
    ) -> dict[str, list[Tensor]]:
        """(tokens,) values of each completion, by name, on the CPU.

        Args:
            sampled: the batch.
            own: the policy's hidden states for each completion; not read unless all actions are used.
            own_head: the policy's head, lifted.
            kept: the frozen models' hidden states, by model and completion.

        Raises:
            NumericalError: NaN or infinity, with the model and the place.
        """
        hidden = [torch.cat(list(rows)) for rows in kept]
        device = hidden[0].device
        heads = self.heads()
        policy = torch.cat(list(own)) if self.estimator.all_action else None
        tokens = torch.tensor([token for row in sampled.completion_ids for token in row], device=device).long()
        first = torch.tensor(
            [place == 0 for row in sampled.completion_ids for place in range(len(row))], device=device
        )
        own_tokens = torch.cat(sampled.own_tokens([torch.ones(len(row)) for row in sampled.completion_ids])).to(device)
        carried = torch.zeros((), dtype=torch.float64, device=device)
        parts: dict[str, list[Tensor]] = {}
        if policy is not None:
            hidden, heads = [*hidden, policy], [*heads, own_head]
        for part, logprobs in logprobs_in_parts(hidden, heads, chunk_tokens=self.chunk_tokens):
            frozen = logprobs[: len(kept)]
            values = self._of_tokens(tokens[part], frozen)
            if policy is not None:
                before = None
                if self.cap is not None:
                    ratios, carried = running_before(values["rewards"] * own_tokens[part], first[part], carried)
                    before = Before(ratios.float(), first[part])
                values |= self._of_actions(tokens[part], logprobs[-1], frozen, before)
            for name, value in values.items():
                parts.setdefault(name, []).append(value)
            del logprobs, frozen  # before the next are made
        lengths = [len(completion) for completion in sampled.completion_ids]
        rows = {name: list(torch.split(torch.cat(values).cpu(), lengths)) for name, values in parts.items()}
        for name, model in _MODELS.items():
            if name in rows:
                with naming(model):
                    check_finite(rows[name], sampled.completion_ids)
        check_finite(rows["rewards"], sampled.completion_ids, "dense reward")
        return rows

    def _of_tokens(self, ids: Tensor, frozen: Sequence[Tensor]) -> dict[str, Tensor]:
        """(tokens,) values of a chunk's sampled tokens, from (tokens, vocabulary) log-probabilities."""
        sft, *refs = frozen
        chosen_sft = _chosen(sft, ids)
        chosen_refs = [_chosen(ref, ids) for ref in refs]
        values = {
            "rewards": self.reward.from_logprobs(chosen_sft, chosen_refs, torch.ones_like(ids, dtype=torch.bool)),
            "sft_logprobs": chosen_sft,
            "sft_entropies": entropy_of_logprobs(sft),
        }
        if refs:
            values["ref_logprobs"] = reference_logprobs(chosen_refs, self.reward.reference_mean)
        return values

    def _of_actions(
        self, ids: Tensor, policy: Tensor, frozen: Sequence[Tensor], before: Before | None
    ) -> dict[str, Tensor]:
        """(tokens,) expectations of a chunk over all actions, from (tokens, vocabulary) log-probabilities."""
        sft, *refs = frozen
        values = {
            "policy_logprobs": _chosen(policy, ids),
            "expected": expected_rewards(policy, self.action_rewards(policy, sft, refs, before)),
            "state_kl": kl_of_logprobs(policy, sft),
        }
        return values if before is None else {**values, "log_ratios": before.log_ratios}

    # -- loss --------------------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, scalar, computed inside of the model's forward pass; `TOKEN_VALUES`.

        Args:
            model: the policy as it is trained, wrapped.
            batch: the micro-batch.
        """
        ignored = torch.full_like(batch.prompt_ids, IGNORED_LABEL)
        labels = torch.cat([ignored, batch.completion_ids.masked_fill(~batch.mask, IGNORED_LABEL)], dim=1)
        with self.autocast():
            output = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                labels=labels,
                token_loss=MicroBatchLoss(self, batch),
            )
        return output.loss, output.token_values


@dataclass(frozen=True)
class MicroBatchLoss:
    """The loss of one micro-batch from the policy's hidden states: `models.packed_forward.TokenLoss`."""

    vocabulary: WholeVocabulary
    batch: MicroBatch

    def __call__(
        self, hidden: Tensor, head: Head, ids: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and `TOKEN_VALUES` of the tokens at (rows, columns)."""
        batch, vocabulary = self.batch, self.vocabulary
        padded = torch.zeros(len(TOKEN_VALUES), *batch.advantages.shape, device=hidden.device)
        if not len(ids):
            return torch.zeros((), device=hidden.device), padded
        columns = columns - batch.prompt_ids.shape[1]
        lengths = torch.tensor([len(states[0]) for states in batch.frozen_hidden], device=rows.device)
        places = (lengths.cumsum(0) - lengths)[rows] + columns
        heads = vocabulary.heads()
        kept = [torch.cat([states[k] for states in batch.frozen_hidden])[places] for k in range(len(heads))]

        def of_part(logprobs: Tensor, part: slice, sft: Tensor, *refs: Tensor) -> tuple[Tensor, Tensor]:
            rewards = None
            if vocabulary.estimator.all_action:
                before = None
                if batch.log_ratios is not None:
                    before = Before(batch.log_ratios[rows[part], columns[part]], columns[part] == 0)
                with torch.no_grad():
                    rewards = vocabulary.action_rewards(logprobs.detach(), sft, refs, before)
            anchor = None if vocabulary.estimator.kl_in_return else sft
            return self._of_tokens(logprobs, ids[part], rewards, anchor, (rows[part], columns[part]))

        frozen = list(zip(kept, heads, strict=True))
        loss, values = chunked_loss(of_part, hidden, head, frozen=frozen, chunk_tokens=vocabulary.chunk_tokens)
        padded[:, rows, columns] = values.to(padded)
        return loss, padded

    def _of_tokens(
        self,
        logprobs: Tensor,
        ids: Tensor,
        action_rewards: Tensor | None,
        sft: Tensor | None,
        places: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The loss of a chunk, by the estimator; rewards and SFT's log-probabilities are over the vocabulary."""
        batch, chosen = self.batch, _chosen(logprobs, ids)
        tokens = Tokens(
            chosen,
            batch.advantages[places],
            torch.ones_like(chosen, dtype=torch.bool),
            None if batch.old_logprobs is None else batch.old_logprobs[places],
            None if action_rewards is None else expected_rewards(logprobs, action_rewards),
            None if batch.shares is None else batch.shares[places[0]],
            None if sft is None else kl_of_logprobs(logprobs, sft),
            batch.state_weights[places],
        )
        loss, metrics = self.vocabulary.estimator.loss(tokens, batch.normalizer)
        with torch.no_grad():
            none = torch.zeros_like(chosen)
            state_kl = none if tokens.state_kl is None else tokens.state_kl
            clip_ratio = none + metrics.get("clip_ratio", 0.0)
            return loss, torch.stack([chosen, entropy_of_logprobs(logprobs), state_kl, clip_ratio])


def _chosen(logprobs: Tensor, ids: Tensor) -> Tensor:
    """(tokens,) log-probability of each id."""
    return logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
