"""`DPRConfig`: TRL's `GRPOConfig` with the arguments of Dense-Path REINFORCE."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import torch
from trl import GRPOConfig

from densepath.core.estimator import Estimator
from densepath.core.mixture import Cap
from densepath.core.objective import Normalizer
from densepath.core.returns import Baseline
from densepath.core.rewards import ReferenceMean
from densepath.errors import ConfigError
from densepath.rewards.dense import RewardKind
from densepath.trainers.refusals import refuse_unused, refusing, without_effect


class EstimatorKind(str, Enum):
    """How the gradient is estimated from a batch; docs/method.md, "The estimators"."""

    AUTO = "auto"
    ALL_ACTION = "all_action"
    SAMPLED = "sampled"


class RewardLevel(str, Enum):
    """What a token is credited with: the rewards from it on, or the whole completion's."""

    TOKEN = "token"
    SEQUENCE = "sequence"


_USED = frozenset(
    {
        *("model_init_kwargs", "trust_remote_code", "disable_dropout", "chat_template_kwargs"),
        *("num_generations", "num_generations_eval", "generation_batch_size", "steps_per_generation"),
        *("max_completion_length", "max_tool_calling_iterations", "shuffle_dataset", "pad_to_multiple_of"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),  # refused below: they sample another policy
        *("beta", "num_iterations", "epsilon", "epsilon_high", "reward_weights", "mask_truncated_completions"),
        *("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_server_base_url"),
        *("vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
        *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
        *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
        *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap"),
        *("use_transformers_continuous_batching", "transformers_continuous_batching_config"),
        *("use_transformers_paged", "ds3_gather_for_generation"),
        *("log_completions", "log_completions_hub_repo", "log_multimodal", "log_unique_prompts"),
        "num_completions_to_print",
    }
)
"""What `GRPOConfig` adds to transformers' arguments and DPR uses."""
_CHOICES: dict[str, type[Enum]] = {
    "baseline": Baseline,
    "dense_reward": RewardKind,
    "estimator": EstimatorKind,
    "loss_normalizer": Normalizer,
    "reference_mean": ReferenceMean,
    "reward_level": RewardLevel,
}
_INSTEAD = {
    "loss_type": "loss_normalizer says what the loss is divided by",
    "scale_rewards": "whiten_advantages divides advantages by their spread",
    "importance_sampling_level": "reward_level says what a token is credited with",
    "sync_ref_model": "the KL is to the SFT policy, which stays",
    "off_policy_mask_threshold": "epsilon clips several updates on one batch",
    "delta": "epsilon_high clips from above",
    "router_aux_loss_coef": "the loss has no part for the balance of experts",
    "cast_lm_head_to_fp32": "heads are multiplied in float32 where dtype in model_init_kwargs says so",
    "generation_kwargs": "they would sample from another policy than the one differentiated",
    "vllm_structured_outputs_regex": "it would sample from another policy than the one differentiated",
    "neftune_noise_alpha": "the log-probabilities must be those of the policy that sampled",
    "train_sampling_strategy": "prompts are drawn in groups of num_generations",
}
_NOT_DPRS = ("label_smoothing_factor", "neftune_noise_alpha", "train_sampling_strategy")
"""What DPR does not use of transformers' own arguments."""
WITHOUT_EFFECT = without_effect(GRPOConfig, _USED, also=_NOT_DPRS)
"""Arguments that DPR refuses with any value but their default, which is given here."""
_ONLY_WITH = {
    switch: without_effect(GRPOConfig, {*WITHOUT_EFFECT, *(name for name in _USED if not name.startswith(prefix))})
    for switch, prefix in (("use_vllm", "vllm_"), ("use_transformers_continuous_batching", "transformers_"))
}
"""Switch -> arguments that have no effect where it is off, with their defaults."""

DEFAULT_BETA = 0.5

LOWER_IS_BETTER = ("nll", "nll_increase", "kl", "kl_sequence", "completions/clipped_ratio")
"""Metrics of which a `metric_for_best_model` keeps the lowest."""


def beta_of(beta: float | None, reward_lambda: float | None) -> float:
    """The coefficient of the KL that was given by either name, `reward_lambda = 1 + 1 / beta`; 0.5 by neither.

    Raises:
        ConfigError: a lambda that no beta has, or two that disagree.

    Source: lambda is that of G-OPD (arXiv 2602.12125); the identity is derived in docs/method.md.
    """
    if reward_lambda is None:
        return DEFAULT_BETA if beta is None else beta
    if not 1 < reward_lambda < math.inf:
        raise ConfigError(f"reward_lambda={reward_lambda} must be above 1 and finite: it is 1 + 1 / beta")
    found = 1 / (reward_lambda - 1)
    if beta is not None and not math.isclose(beta, found, rel_tol=1e-6):
        raise ConfigError(
            f"reward_lambda={reward_lambda} is beta={found:.6g}, and beta={beta} was given: leave one out"
        )
    return found


@dataclass
class DPRConfig(GRPOConfig):  # type: ignore[misc]
    """Arguments of `DPRTrainer`; everything else is TRL's `GRPOConfig` and transformers' `TrainingArguments`.

    Where a default comes from: `gamma`, `dense_reward` and undiscounted returns are the paper's; `beta`, `baseline`,
    `num_generations`, `estimator` and the KL inside the return are ours (docs/trainer.md); the rest is TRL's.

    Raises:
        ConfigError: a value that biases the gradient without a correction, or does not exist.
    """

    beta: float = field(
        default=None,  # type: ignore[assignment]  # a number once the arguments are made
        metadata={
            "help": "Coefficient of the KL to the SFT policy, inside the return. Larger stays closer to SFT. "
            "None: 0.5, unless reward_lambda says it."
        },
    )
    reward_lambda: float | None = field(
        default=None,
        metadata={"help": "Another name for beta, G-OPD's: lambda = 1 + 1 / beta, above 1."},
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
    reference_mean: str = field(
        default="arithmetic",
        metadata={"help": "How several references become one: arithmetic or geometric mean of their probabilities."},
    )
    reward_scale: float = field(
        default=1.0,
        metadata={"help": "Factor on the dense reward; the beta of DPO for a DPO model and its reference."},
    )
    sequence_cap: float | None = field(
        default=None,
        metadata={
            "help": "kappa: a completion earns reward_scale * min(0, R - kappa), R being its unscaled reward, nats. "
            "No event's probability then grows without bound. None: uncapped."
        },
    )
    reward_clip: float | None = field(
        default=None, metadata={"help": "Cut the reward of a token at plus and minus this, nats (moves the optimum)."}
    )
    reward_floor: float | None = field(
        default=None,
        metadata={
            "help": "Raise log-probabilities to at least this, nats: no reward where both models are that unsure "
            "(moves the optimum)."
        },
    )
    reward_level: str = field(
        default="token",
        metadata={"help": "Credit a token with the rewards from it on (token), or with the whole sum (sequence)."},
    )
    kl_in_return: bool = field(
        default=True,
        metadata={"help": "The KL to SFT is part of the return; False: an exact KL loss at each state (biased)."},
    )
    ref_beta: float = field(
        default=0.0, metadata={"help": "Coefficient of a second KL, to the reference, inside the return."}
    )
    estimator: str = field(
        default="sampled",
        metadata={
            "help": "sampled (the tokens of the completions), all_action (expectations over all next tokens: less "
            "variance near SFT, a dearer step), or auto: all_action where it is possible."
        },
    )
    all_action_weight: float | None = field(
        default=None,
        metadata={
            "help": "Share of the all-action estimate in its mixture with the sampled one; None: fitted for each "
            "completion to the others of the batch."
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
    loss_normalizer: str = field(
        default="completions",
        metadata={
            "help": "Divide the summed loss by the number of completions, by that times max_completion_length "
            "(TRL's dr_grpo), or by the number of tokens (TRL's dapo; biased)."
        },
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
        default=0.2,
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
        self.beta = beta_of(self.beta, self.reward_lambda)
        for name, kind in _CHOICES.items():
            value = getattr(self, name)
            if value not in [str(member.value) for member in kind]:
                allowed = ", ".join(str(member.value) for member in kind)
                raise ConfigError(f"{name}={value!r} does not exist; choose one of: {allowed}")
        refuse_unused(self, WITHOUT_EFFECT, "DPR, which has its own sampler, advantages and loss", _INSTEAD)
        if self.max_completion_length is None:
            raise ConfigError("max_completion_length=None: give the most tokens of a completion, EOS included")
        for name in ("gradient_accumulation_steps", "steps_per_generation", "num_iterations", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not self.epsilon >= 0:
            raise ConfigError(f"epsilon={self.epsilon} must be at least 0")
        self._check_reward()
        self._check_cap()
        self._check_estimate()
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
        best = f"_{self.metric_for_best_model}"  # of several evaluation data sets the name of one stands before it
        if getattr(self, "greater_is_better", None) is None and best.endswith(tuple(f"_{m}" for m in LOWER_IS_BETTER)):
            self.greater_is_better: bool | None = False  # transformers guesses True for what does not end in "loss"
        with refusing():
            super().__post_init__()
        for switch, unused in _ONLY_WITH.items():
            if not getattr(self, switch):
                refuse_unused(self, unused, f"a run without {switch}", {})
        if self.use_transformers_continuous_batching and (self.bf16 or self.fp16):
            raise ConfigError(
                "use_transformers_continuous_batching rounds the policy's own weights to 16 bits under bf16 and fp16: "
                "set bf16 to false, or leave it out"
            )
        obstacle = self.all_action_obstacle()
        if EstimatorKind(self.estimator) is EstimatorKind.ALL_ACTION and obstacle:
            raise ConfigError(f"estimator=all_action is not possible: {obstacle}; use estimator=sampled")

    @property
    def clips_updates(self) -> bool:
        """Whether a batch serves several updates, so that later ones are PPO's clipped surrogate (TRL's condition)."""
        return bool(self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations))

    def all_action_obstacle(self) -> str | None:
        """Why these arguments rule the all-action estimator out; None if they do not."""
        if RewardKind(self.dense_reward) is RewardKind.INVERSE_BELLMAN:
            return "dense_reward=inverse_bellman needs the value of the next state, which only the sampled token has"
        if RewardLevel(self.reward_level) is RewardLevel.SEQUENCE:
            return "reward_level=sequence adds the rewards before a token, which is variance alone"
        if self.whiten_advantages:
            return "whiten_advantages divides by the spread of sampled returns"
        if self.clips_updates:
            return (
                f"num_iterations={self.num_iterations} and steps_per_generation={self.steps_per_generation} make "
                "several updates on one batch, whose clipping compares sampled tokens alone"
            )
        return None

    def estimator_object(self, all_action: bool) -> Estimator:
        """The estimator that these arguments mean; with `all_action` where it is possible."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return Estimator(
            beta=self.beta,
            ref_beta=self.ref_beta,
            gamma=self.gamma,
            baseline=Baseline(self.baseline),
            kl_in_return=self.kl_in_return,
            whole_sequence=RewardLevel(self.reward_level) is RewardLevel.SEQUENCE,
            whiten=self.whiten_advantages,
            all_action=all_action,
            all_action_weight=self.all_action_weight if all_action else None,
            epsilons=(self.epsilon, high) if self.clips_updates else None,
        )

    def _check_reward(self) -> None:
        if not 0 <= self.dense_reward_weight <= 1:
            raise ConfigError(f"dense_reward_weight={self.dense_reward_weight} must lie in [0, 1]; 1 is dense alone")
        kind = RewardKind(self.dense_reward)
        if kind is not RewardKind.BASELINE_RELATIVE:
            for name, unused in (
                ("ref_beta", self.ref_beta != 0),
                ("reference_mean", self.reference_mean != "arithmetic"),
            ):
                if unused:
                    raise ConfigError(
                        f"{name} has no effect: dense_reward={kind.value} has no reference; leave it out"
                    )
        if self.reward_clip is not None and not self.reward_clip > 0:
            raise ConfigError(f"reward_clip={self.reward_clip} must be above 0, in nats; None for none")
        if self.reward_floor is not None and not self.reward_floor < 0:
            raise ConfigError(
                f"reward_floor={self.reward_floor} must be below 0: it bounds log-probabilities, in nats"
            )

    @property
    def cap(self) -> Cap | None:
        """The cap of a completion's reward; None for none."""
        return None if self.sequence_cap is None else Cap(self.sequence_cap, self.reward_scale)

    def _check_cap(self) -> None:
        if self.sequence_cap is None:
            return
        if not math.isfinite(self.sequence_cap):
            raise ConfigError(f"sequence_cap={self.sequence_cap} must be a finite number of nats; None for no cap")
        if not self.reward_scale > 0:
            raise ConfigError(f"reward_scale={self.reward_scale} must be above 0 with sequence_cap")
        if RewardKind(self.dense_reward) is not RewardKind.BASELINE_RELATIVE:
            raise ConfigError(f"sequence_cap needs the reward relative to a reference, not {self.dense_reward}")
        if self.gamma < 1:
            raise ConfigError("sequence_cap needs gamma=1: the cap is on the undiscounted sum of a completion")
        if self.reward_clip is not None:
            raise ConfigError("reward_clip has no use beside sequence_cap, which bounds the sum: leave one out")

    def _check_estimate(self) -> None:
        for name in ("beta", "ref_beta", "reward_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be a finite number")
        for name in ("beta", "ref_beta"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma={self.gamma} must lie in [0, 1]; 1 is undiscounted")
        if self.gamma < 1 and Baseline(self.baseline) is Baseline.LEAVE_ONE_OUT:
            raise ConfigError("baseline=leave_one_out needs gamma=1: with a discount it holds part of the future")
        if self.gamma < 1 and RewardLevel(self.reward_level) is RewardLevel.SEQUENCE:
            raise ConfigError("gamma has no effect with reward_level=sequence, which sums the whole completion: set 1")
        if self.all_action_weight is not None:
            if not 0 < self.all_action_weight <= 1:
                raise ConfigError(
                    f"all_action_weight={self.all_action_weight} must lie in (0, 1]; for 0 use estimator=sampled"
                )
            if EstimatorKind(self.estimator) is EstimatorKind.SAMPLED:
                raise ConfigError("all_action_weight has no effect with estimator=sampled: leave it out")
        if not self.kl_in_return and self.beta == 0:
            raise ConfigError("kl_in_return=False has no effect with beta=0, where there is no KL: leave it out")
