"""What `--help` of a training lists: the arguments that matter, TRL's among them. No torch: it reads this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainerArgument:
    """An argument of a TRL config, told without importing TRL.

    Attributes:
        text: its help.
        default: what the config takes where nothing is given.
        choices: the words that it takes; empty for any.
    """

    text: str
    default: object
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """What `--help` of a command lists; `--help_all` lists every argument.

    Attributes:
        own: names of its own arguments; empty for all.
        trainer: name -> argument of the config that takes any other key.
        configs: places (`module:class`) of the configs whose arguments `--help_all` lists, by their prefix.
    """

    own: tuple[str, ...] = ()
    trainer: Mapping[str, TrainerArgument] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)


_SFT_CONFIG, _DPR_CONFIG = "trl:SFTConfig", "densepath.trainers.dpr_config:DPRConfig"
_STEPS = {
    "max_steps": TrainerArgument("Optimizer steps, in the place of epochs where above 0.", -1),
    "per_device_train_batch_size": TrainerArgument("Rows in one step and device.", 8),
    "gradient_accumulation_steps": TrainerArgument("Such batches in one optimizer step.", 1),
    "report_to": TrainerArgument("Trackers: tensorboard, wandb, trackio, mlflow and others.", "none"),
}

RUN = Listed(
    own=(
        *("model_name_or_path", "dataset_name", "eval_dataset_name", "verifier", "judge", "output_dir"),
        *("sft_from", "sft_model_name_or_path", "sft_num_train_epochs", "sft_most_epochs", "sft_max_steps"),
        "sft_learning_rate",
        *("reference", "reference_fractions", "beta", "dpr_max_steps", "max_completion_length", "arms"),
        *("use_peft", "report_to", "dry_run"),
    ),
    configs={"sft_": _SFT_CONFIG, "dpr_": _DPR_CONFIG},
)
SFT = Listed(
    own=(
        *("model_name_or_path", "dataset_name", "max_length", "use_peft", "reference_fractions", "output_dir"),
        "reference_ema_decay",
    ),
    trainer={
        "learning_rate": TrainerArgument("Initial learning rate.", 2e-5),
        "num_train_epochs": TrainerArgument("Passes over the demonstrations.", 3.0),
        **_STEPS,
    },
    configs={"": _SFT_CONFIG},
)
DPR = Listed(
    own=(
        *("model_name_or_path", "ref_model_name_or_path", "dataset_name", "eval_dataset_name", "use_peft"),
        *("output_dir", "profile"),
    ),
    trainer={
        "beta": TrainerArgument("Coefficient of the KL to the SFT policy; larger stays closer to it.", 0.5),
        "gamma": TrainerArgument("Discount of the return-to-go.", 1.0),
        "dense_reward": TrainerArgument(
            "Reading of the models.", "baseline_relative", ("baseline_relative", "logprob", "inverse_bellman")
        ),
        "baseline": TrainerArgument(
            "What is subtracted from the return.", "position_mean", ("position_mean", "leave_one_out", "none")
        ),
        "num_generations": TrainerArgument("Completions of each prompt in a batch.", 4),
        "max_completion_length": TrainerArgument("Longest sampled completion in tokens, EOS included.", 512),
        "learning_rate": TrainerArgument("Initial learning rate.", 1e-6),
        **_STEPS,
    },
    configs={"": _DPR_CONFIG},
)
PURIFY = Listed(configs={"": _SFT_CONFIG})
EXPERIMENT = Listed(configs=RUN.configs)
