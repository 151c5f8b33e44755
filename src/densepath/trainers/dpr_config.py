"""`DPRConfig`: TRL's `GRPOConfig` with the arguments of Dense-Path REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from trl import GRPOConfig

from densepath.core.returns import Baseline
from densepath.errors import ConfigError
from densepath.rewards.dense import RewardKind

_GRPO_ONLY = (
    "scale_rewards",
    "multi_objective_aggregation",
    "loss_type",
    "importance_sampling_level",
    "entropy_coef",
    "use_adaptive_entropy",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "sync_ref_model",
    "use_bias_correction_kl",
    "delta",
)
WITHOUT_EFFECT = {f.name: f.default for f in fields(GRPOConfig) if f.name in _GRPO_ONLY}
"""Arguments of GRPO's own advantages, loss and reference, with their defaults: DPR refuses any other value."""

LOWER_IS_BETTER = ("nll", "nll_increase", "kl", "kl_sequence", "completions/clipped_ratio")
"""Metrics of which a `metric_for_best_model` keeps the lowest."""


@dataclass
class DPRConfig(GRPOConfig):  # type: ignore[misc]
    """Arguments of `DPRTrainer`; everything else is TRL's `GRPOConfig` and transformers' `TrainingArguments`.

    Where a default comes from: `gamma`, `dense_reward` and undiscounted returns are the paper's; `beta`, `baseline`,
    `num_generations` and the KL inside the return are ours (docs/trainer.md); the rest is TRL's.

    Raises:
        ConfigError: a value that biases the gradient without a correction, or does not exist.
    """

    beta: float = field(
        default=0.5,
        metadata={"help": "Coefficient of the KL to the SFT policy, inside the return. Larger stays closer to SFT."},
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of the return-to-go. 1 is the paper's."})
    dense_reward: str = field(
        default="baseline_relative",
        metadata={
            "help": "Reading of the models: baseline_relative (log pi_SFT - log pi_ref), logprob, inverse_bellman."
        },
    )
    dense_reward_weight: float = field(
        default=1.0,
        metadata={
            "help": "alpha of the hybrid reward alpha * dense + (1 - alpha) * reward_funcs. At 1 they are only logged."
        },
    )
    baseline: str = field(
        default="position_mean",
        metadata={
            "help": "Subtracted from the return: position_mean (of the other completions), leave_one_out, none."
        },
    )
    whiten_advantages: bool = field(
        default=False, metadata={"help": "Divide advantages by their standard deviation over the batch (biased)."}
    )
    num_generations: int = field(default=4, metadata={"help": "Completions sampled for each prompt."})
    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate of AdamW."})
    score_token_budget: int = field(
        default=2048, metadata={"help": "Tokens in one forward pass of the frozen models; bounds memory."}
    )
    early_stopping: bool = field(
        default=False,
        metadata={"help": "Stop, and go back to the last good checkpoint, where a threshold below is crossed."},
    )
    early_stopping_patience: int = field(
        default=3, metadata={"help": "Logs in a row with kl_sequence above its threshold before it warns or stops."}
    )
    kl_sequence_threshold: float | None = field(
        default=1.5, metadata={"help": "KL to SFT, nats per completion, that is alarming. None: not watched."}
    )
    nll_increase_threshold: float | None = field(
        default=0.1,
        metadata={"help": "Held-out NLL above the SFT model's, nats per token, that is alarming. None: not watched."},
    )
    predict_with_generate: bool = field(
        default=True,
        metadata={"help": "Sample completions in evaluations; False measures the held-out NLL alone, which is cheap."},
    )

    def __post_init__(self) -> None:
        if getattr(self, "bf16", None) is None and not self.fp16 and not torch.cuda.is_available():
            # TRL's default of bf16 is emulated on most CPUs, and slow.
            self.bf16: bool | None = False
        for name, kind, value in (
            ("baseline", Baseline, self.baseline),
            ("dense_reward", RewardKind, self.dense_reward),
        ):
            if value not in [str(member.value) for member in kind]:
                allowed = ", ".join(str(member.value) for member in kind)
                raise ConfigError(f"{name}={value!r} does not exist; choose one of: {allowed}")
        if not 0 <= self.dense_reward_weight <= 1:
            raise ConfigError(f"dense_reward_weight={self.dense_reward_weight} must lie in [0, 1]; 1 is dense alone")
        if self.beta < 0:
            raise ConfigError(f"beta={self.beta} must be at least 0")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma={self.gamma} must lie in [0, 1]; 1 is undiscounted")
        if self.gamma < 1 and Baseline(self.baseline) is Baseline.LEAVE_ONE_OUT:
            raise ConfigError("baseline=leave_one_out needs gamma=1: with a discount it holds part of the future")
        for name, default in WITHOUT_EFFECT.items():
            if getattr(self, name, default) != default:
                raise ConfigError(f"{name} has no effect in DPR, which has its own advantages and loss: leave it out")
        if self.num_generations < 2:
            raise ConfigError(f"num_generations={self.num_generations} must be at least 2")
        truncates = self.top_p < 1 or self.top_k not in (0, -1, None) or (self.min_p or 0) > 0
        if self.temperature != 1.0 or truncates or self.repetition_penalty != 1.0:
            raise ConfigError(
                "REINFORCE must sample from the policy it differentiates: set temperature=1, top_p=1, top_k=0, "
                f"min_p=None, repetition_penalty=1 (got temperature={self.temperature}, top_p={self.top_p}, "
                f"top_k={self.top_k}, min_p={self.min_p}, repetition_penalty={self.repetition_penalty})"
            )
        if self.early_stopping_patience < 1:
            raise ConfigError(f"early_stopping_patience={self.early_stopping_patience} must be at least 1")
        best: str | None = self.metric_for_best_model
        if getattr(self, "greater_is_better", None) is None and (best or "").removeprefix("eval_") in LOWER_IS_BETTER:
            self.greater_is_better: bool | None = False  # transformers guesses True for what does not end in "loss"
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(str(error)) from error
