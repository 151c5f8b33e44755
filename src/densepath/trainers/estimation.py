"""Which estimator a run uses, and how it gets the numbers for it where sampled tokens suffice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor

from densepath.core.estimator import Estimator, Tokens
from densepath.errors import ConfigError
from densepath.models.logits import plain_head
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.dpr_config import DPRConfig, EstimatorKind
from densepath.trainers.rollout import MicroBatch, Sampled, Scored

logger = get_logger(__name__)


def choose_estimator(
    args: DPRConfig, reward: DenseReward, policy: Any, *, sharded: bool, multimodal: bool
) -> Estimator:
    """The estimator of a run; says in the log what `auto` became.

    Args:
        args: the trainer's arguments.
        reward: the dense reward.
        policy: the policy, unwrapped.
        sharded: weights are spread over processes (FSDP, DeepSpeed ZeRO-3).
        multimodal: hidden states depend on more than token ids.

    Raises:
        ConfigError: arguments that need whole distributions where heads are not at hand.
    """
    wanted = EstimatorKind(args.estimator)
    no_heads = None
    if sharded:
        no_heads = "the weights are sharded, so the heads are not at hand whole"
    elif multimodal:
        no_heads = "a multimodal model's hidden states depend on more than token ids"
    elif wanted is not EstimatorKind.SAMPLED or not args.kl_in_return:
        no_heads = _head_obstacle(reward, policy)
    if no_heads and not args.kl_in_return:
        raise ConfigError(f"kl_in_return=False needs the KL over the whole vocabulary: {no_heads}; leave it out")
    obstacle = args.all_action_obstacle() or no_heads
    if wanted is EstimatorKind.ALL_ACTION and obstacle:
        raise ConfigError(f"estimator=all_action is not possible: {obstacle}; use estimator=sampled")
    all_action = wanted is not EstimatorKind.SAMPLED and not obstacle
    if wanted is EstimatorKind.AUTO:
        if obstacle:
            logger.warning(f"estimator=auto became sampled: {obstacle}")
        else:
            logger.info("estimator=auto became all_action")
    return args.estimator_object(all_action)


def _head_obstacle(reward: DenseReward, policy: Any) -> str | None:
    """Why distributions over the whole vocabulary cannot be compared; None if they can."""
    rows = {}
    models = {"policy": FrozenPolicy(policy), "SFT model": reward.sft}
    models |= {f"reference {index}": ref for index, ref in enumerate(reward.refs)}
    for name, view in models.items():
        with view.active() as model:
            head = plain_head(model)
        if head is None:
            return f"the language-model head of the {name} is not a plain linear layer"
        rows[name] = len(head.weight)
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in rows.items())
        return f"the heads have different numbers of rows ({found}), so some token ids have no reward"
    return None


@dataclass(frozen=True)
class SampledTokens:
    """Rewards and loss from the log-probabilities of the sampled tokens alone.

    Attributes:
        reward: the dense reward.
        estimator: of the run.
        per_token: TRL's `_get_per_token_logps_and_entropies`.
    """

    reward: DenseReward
    estimator: Estimator
    per_token: Callable[..., tuple[Tensor, Tensor | None, Any]]

    def score(self, sampled: Sampled, policy: Any) -> Scored:
        """The batch with its dense rewards; the policy is not asked.

        Raises:
            NumericalError: NaN or infinity, with the model and the place.
        """
        scores = self.reward.score_ids(sampled.prompt_ids, sampled.completion_ids, eos_token_ids=None)
        return Scored(sampled, scores)

    def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, scalar; `TOKEN_VALUES`."""
        logprobs, entropies, _ = self.per_token(
            model, batch.input_ids, batch.attention_mask, batch.mask.shape[1], compute_entropy=True
        )
        assert entropies is not None
        tokens = Tokens(logprobs, batch.advantages, batch.mask, batch.old_logprobs)
        loss, metrics = self.estimator.loss(tokens, batch.normalizer)
        none = torch.zeros_like(logprobs)
        clip_ratio = none + metrics.get("clip_ratio", 0.0)
        return loss, torch.stack([logprobs, entropies.to(logprobs.dtype), none, clip_ratio]).detach()
