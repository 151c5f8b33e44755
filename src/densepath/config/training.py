"""Arguments of one stage alone: `densepath sft`, `dpr` and `purify`. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from densepath.config.judge import JudgeArguments
from densepath.config.mixins import (
    TEXT_TASKS,
    ReferencesArguments,
    TrainableArguments,
    TrainingRowsArguments,
)
from densepath.config.options import check_no_effect, check_temperature, option
from densepath.config.run import PurifyArguments, RunArguments


@dataclass
class SFTArguments(ReferencesArguments, TrainingRowsArguments, TrainableArguments):
    """Arguments of `densepath sft`; any argument of TRL's `SFTConfig` is taken too."""

    output_dir: str = option("sft-output", "Where the model, its references and checkpoints go.")


@dataclass
class DPRArguments(TrainingRowsArguments, TrainableArguments):
    """Arguments of `densepath dpr`; any argument of `DPRConfig` (hence `GRPOConfig`) is taken too."""

    ref_model_name_or_path: list[str] = option(
        [], "Reference of the reward, or several: earlier checkpoints of the SFT run, or the model before SFT."
    )
    dataset_name: str = option(
        "",
        f"Prompts: any data set with a prompt, messages or prompt+completion; {TEXT_TASKS} generates toy ones.",
        required=True,
    )
    max_train_samples: int | None = option(None, "Prompts used; all if None.", least=1)
    eval_dataset_name: str | None = option(None, "Held-out demonstrations, whose NLL is logged every eval_steps.")
    dataset_test_split: str = option("test", "Split of eval_dataset_name.", needs="eval_dataset_name")
    max_eval_samples: int | None = option(
        100, "Held-out demonstrations scored; all if None.", least=1, needs="eval_dataset_name"
    )
    held_out_ref_model_name_or_path: str | None = option(
        None, "A second reference: the reward under it is logged and never optimised."
    )
    output_dir: str = option("dpr-output", "Where the improved model and checkpoints go.")
    profile: bool = option(
        False, "Also say where the time of a step goes, by phase: a table, profile.json and profile.html."
    )


@dataclass
class PurifyCommandArguments(JudgeArguments, PurifyArguments, TrainingRowsArguments, TrainableArguments):
    """Arguments of `densepath purify`; any argument of TRL's `SFTConfig` is taken too, for each of its trainings."""

    model_name_or_path: str = option("", "The SFT model: hub id, local folder or adapter folder.", required=True)
    ref_model_name_or_path: str | None = option(None, "The model before SFT.", required=True)
    verifier: str | None = option(
        None,
        "Program that judges each behaviour on held-out prompts: exact_match, final_number, instruction_format or "
        "package.module:function. None: the judge does, or without one the rule without labels.",
    )
    eval_dataset_name: str | None = option(
        None, "Held-out rows; None: a tenth of the demonstrations, or less, split off by content hash."
    )
    dataset_test_split: str = option("test", "Split of eval_dataset_name.", needs="eval_dataset_name")
    num_validation_samples: int = option(200, "Held-out rows used.", least=1)
    max_length: int | None = option(
        None, "Longest demonstration in tokens; longer ones are cut. None: the context.", least=2
    )
    max_completion_length: int | None = option(
        None,
        "Longest sampled answer in tokens, EOS included. None: what 99 of 100 demonstrations need, at most half the "
        "context.",
        least=1,
    )
    temperature: float = option(0.0, "Of the answers that are judged; 0 is greedy.")
    purify_dft: bool = option(
        True,
        "With a verifier or judge: try DFT on all demonstrations too, and take it where it is better.",
    )
    seed: int = option(0, "Seed of draws, training and sampling.", least=0)
    output_dir: str = option("purified", "Where model, kept.jsonl, dropped.jsonl, purification.json and its page go.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature("temperature=", self.temperature)

    def check_effect(self) -> None:
        """Without anything to judge by, DFT is not tried."""
        super().check_effect()
        if self.verifier is None and self.judge is None:
            check_no_effect(self, ["purify_dft"], "without verifier or judge")

    def recipe(self, batch: int, save_steps: int) -> RunArguments:
        """The same as a run's recipe, which starts from the model before SFT.

        Args:
            batch: demonstrations in a step and device.
            save_steps: optimizer steps between checkpoints.
        """
        shared = {f.name for f in fields(RunArguments)} & {f.name for f in fields(self)}
        values: dict[str, Any] = {name: getattr(self, name) for name in shared}
        values |= {
            "model_name_or_path": self.ref_model_name_or_path,
            "sft_model_name_or_path": self.model_name_or_path,
            "ref_model_name_or_path": [],
        }
        values["eval_temperatures"] = [self.temperature]
        values |= {"sft_per_device_train_batch_size": batch, "save_steps": save_steps}
        return RunArguments(**values)
