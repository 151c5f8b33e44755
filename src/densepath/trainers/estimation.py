"""Which estimator of the gradient a trainer uses, and the loss of one micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor

from densepath.core.masks import masked_sum
from densepath.core.objective import clipped_loss, reinforce_loss
from densepath.errors import ConfigError
from densepath.models.logits import plain_head
from densepath.models.packing import IGNORED_LABEL
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.dpr_config import DPRConfig, Estimator
from densepath.trainers.rollout import loss_mask
from densepath.trainers.whole_vocabulary import TOKEN_VALUES, MicroBatchLoss, WholeVocabulary

logger = get_logger(__name__)


def choose_estimator(
    args: DPRConfig, reward: DenseReward, policy: Any, *, sharded: bool, multimodal: bool
) -> tuple[Estimator, WholeVocabulary | None]:
    """The estimator of a run, and what it needs of whole distributions; says in the log what `auto` became.

    Args:
        args: the trainer's arguments.
        reward: the dense reward.
        policy: the policy, unwrapped.
        sharded: weights are spread over processes (FSDP, DeepSpeed ZeRO-3).
        multimodal: hidden states depend on more than token ids.

    Returns:
        ALL_ACTION or SAMPLED; None where sampled log-probabilities suffice.

    Raises:
        ConfigError: arguments that need whole distributions where heads are not at hand.
    """
    wanted = Estimator(args.estimator)
    no_heads = None
    if sharded:
        no_heads = "the weights are sharded, so the heads are not at hand whole"
    elif multimodal:
        no_heads = "a multimodal model's hidden states depend on more than token ids"
    elif wanted is not Estimator.SAMPLED or not args.kl_in_return:
        no_heads = _head_obstacle(reward, policy)
    if no_heads and not args.kl_in_return:
        raise ConfigError(f"kl_in_return=False needs the KL over the whole vocabulary: {no_heads}; leave it out")
    obstacle = args.all_action_obstacle() or no_heads
    if wanted is Estimator.ALL_ACTION and obstacle:
        raise ConfigError(f"estimator=all_action is not possible: {obstacle}; use estimator=sampled")
    all_action = wanted is not Estimator.SAMPLED and not obstacle
    if wanted is Estimator.AUTO:
        if obstacle:
            logger.warning(f"estimator=auto became sampled: {obstacle}")
        else:
            logger.info("estimator=auto became all_action")
    vocabulary = WholeVocabulary(reward, args, all_action=all_action) if all_action or not args.kl_in_return else None
    return (Estimator.ALL_ACTION if all_action else Estimator.SAMPLED), vocabulary


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


def importance_weights(inputs: dict[str, Any], mask: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Factors on the score function and on expectations at a state, where another engine sampled.

    `w_t = pi_theta(a_t|s_t) / mu(a_t|s_t)`, cut off as TRL's mode says, corrects for the action and belongs to the
    score function alone: an expectation over all actions does not depend on who drew one. A ratio of whole sequences
    corrects for the states too, and belongs to both.

    Args:
        inputs: the micro-batch; holds `importance_sampling_ratio` where there is something to correct.
        mask: (completions, tokens) bool.
        mode: TRL's `vllm_importance_sampling_mode`.

    Returns:
        Two (completions, tokens) float tensors.

    Source: the ratios are TRL's; where they belong with expectations is derived in docs/method.md.
    """
    ones = torch.ones(mask.shape, device=mask.device)
    ratio = inputs.get("importance_sampling_ratio")
    if ratio is None:
        return ones, ones
    ratio = ratio * ones
    return ratio, ratio if mode.startswith("sequence") else ones


def sampled_loss(
    logprobs: Tensor,
    entropies: Tensor,
    inputs: dict[str, Any],
    args: DPRConfig,
    weights: Tensor,
    normalizer: float | Tensor,
    epsilons: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """REINFORCE, or PPO's clipped surrogate, from the log-probabilities of the sampled tokens alone.

    Returns:
        Scalar loss; `TOKEN_VALUES`.
    """
    mask = loss_mask(inputs)
    advantages = inputs["advantages"] * weights
    clip_ratio = torch.zeros_like(logprobs)
    if args.clips_updates:
        loss, metrics = clipped_loss(logprobs, inputs["old_per_token_logps"], advantages, mask, normalizer, *epsilons)
        clip_ratio = clip_ratio + metrics["clip_ratio"]
    else:
        loss, _ = reinforce_loss(logprobs, advantages, mask, normalizer)
    return loss, torch.stack([logprobs, entropies.to(logprobs.dtype), torch.zeros_like(logprobs), clip_ratio]).detach()


def whole_vocabulary_loss(
    model: Any,
    vocabulary: WholeVocabulary,
    inputs: dict[str, Any],
    weights: tuple[Tensor, Tensor],
    normalizer: float | Tensor,
    epsilons: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The loss of a micro-batch from whole distributions, computed inside of the model's forward pass.

    Args:
        model: the policy as it is trained, wrapped.
        vocabulary: see `WholeVocabulary`.
        inputs: the micro-batch; `frozen_hidden` among it.
        weights: see `importance_weights`.
        normalizer: what the sum is divided by.
        epsilons: bounds of PPO's ratio below and above 1.

    Returns:
        Scalar loss; `TOKEN_VALUES`.
    """
    prompt_ids, completion_ids = inputs["prompt_ids"], inputs["completion_ids"]
    labels = torch.cat(
        [
            torch.full_like(prompt_ids, IGNORED_LABEL),
            completion_ids.masked_fill(~loss_mask(inputs), IGNORED_LABEL),
        ],
        dim=1,
    )
    token_loss = MicroBatchLoss(
        vocabulary=vocabulary,
        frozen_hidden=inputs["frozen_hidden"],
        prompt_width=prompt_ids.shape[1],
        advantages=inputs["advantages"] * weights[0],
        state_weights=weights[1],
        all_action_weights=inputs.get("all_action_weights"),
        old_logprobs=inputs["old_per_token_logps"] if vocabulary.args.clips_updates else None,
        normalizer=normalizer,
        epsilon_low=epsilons[0],
        epsilon_high=epsilons[1],
    )
    output = model(
        input_ids=torch.cat([prompt_ids, completion_ids], dim=1),
        attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        labels=labels,
        token_loss=token_loss,
    )
    return output.loss, output.token_values


def loss_metrics(
    values: Tensor, mask: Tensor, accelerator: Accelerator, *, clips: bool, state_kl: bool
) -> dict[str, float]:
    """Means over the tokens of all processes of what a loss handed back; what is not used is left out.

    Args:
        values: `TOKEN_VALUES`.
        mask: (completions, tokens) bool.
        accelerator: joins the processes.
        clips: whether updates are clipped.
        state_kl: whether the KL is a loss of its own.
    """
    sums = [masked_sum(each.float(), mask) for each in values]
    *totals, tokens = accelerator.reduce(torch.stack([*sums, mask.sum().float()]), reduction="sum").tolist()
    means = {name: total / max(tokens, 1.0) for name, total in zip(TOKEN_VALUES, totals, strict=True)}
    used = {"logprobs": False, "entropy": True, "state_kl": state_kl, "clip_ratio": clips}
    return {name: mean for name, mean in means.items() if used[name]}
