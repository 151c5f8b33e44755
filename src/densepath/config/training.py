"""Arguments of one stage alone: `densepath sft`, `dpr` and `eval`. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.mixins import (
    TEXT_TASKS,
    ReferencesArguments,
    RowsArguments,
    SamplingArguments,
    TrainableArguments,
    TrainingRowsArguments,
)
from densepath.config.options import check_temperature, option


@dataclass
class SFTArguments(ReferencesArguments, TrainingRowsArguments, TrainableArguments):
    """Arguments of `densepath sft`; any argument of TRL's `SFTConfig` is taken too."""

    output_dir: str = option("sft-output", "Where the model, its references and checkpoints go.")


@dataclass
class DPRArguments(TrainingRowsArguments, TrainableArguments):
    """Arguments of `densepath dpr`; any argument of `DPRConfig` (hence `GRPOConfig`) is taken too."""

    ref_model_name_or_path: str | None = option(
        None, "Reference of the reward: an earlier checkpoint of the SFT run, or the model before SFT."
    )
    dataset_name: str = option(TEXT_TASKS, "Prompts: any data set with a prompt, messages or prompt+completion.")
    max_train_samples: int | None = option(None, "Prompts used; all if None.", least=1)
    eval_dataset_name: str | None = option(None, "Held-out demonstrations, whose NLL is logged every eval_steps.")
    max_eval_samples: int | None = option(100, "Held-out demonstrations scored; all if None.")
    held_out_ref_model_name_or_path: str | None = option(
        None, "A second reference: the reward under it is logged and never optimised."
    )
    output_dir: str = option("dpr-output", "Where the improved model and checkpoints go.")


@dataclass
class EvalArguments(SamplingArguments, RowsArguments, TrainableArguments):
    """Arguments of `densepath eval`."""

    dataset_name: str = option(TEXT_TASKS, "Rows with a prompt and what the verifier needs (answer).")
    dataset_train_split: str = option("test", "Split of a hub data set or datasets folder.")
    verifier: str = option("exact_match", "exact_match, final_number, instruction_format or package.module:function.")
    max_samples: int = option(100, "Prompts evaluated.", least=1)
    temperature: float = option(0.0, "0 is greedy.")
    seed: int = option(1_000_000, "Seed of sampling, and of text_tasks: not one that a run trained on.")
    output_file: str | None = option(None, "Write the figures and completions here as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature("temperature=", self.temperature)
