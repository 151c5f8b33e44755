"""The flat configuration of the commands that use the reward without RL. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.errors import ConfigError
from densepath.pipeline.options import REWARDS, TokenizerArguments, check_at_least, check_choice, option

AGGREGATIONS = ("mean", "sum", "min")
CRITERIA = ("auto", "preference", "verifier", "altered", "samples")
TASKS = ("auto", "preference", "first_error", "altered_numbers")


@dataclass
class RewardArguments(TokenizerArguments):
    """Which models make the reward, and which rows it reads."""

    model_name_or_path: str = option("", "The SFT model: hub id, local folder or adapter folder.")
    ref_model_name_or_path: str | None = option(
        None, "Reference: an earlier checkpoint of the SFT run, or the model before SFT. Not needed by logprob."
    )
    dense_reward: str = option("baseline_relative", "baseline_relative, logprob or inverse_bellman.")
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")
    dataset_name: str = option("", "Rows: JSONL, CSV, Parquet, a folder or a hub id.")
    dataset_train_split: str = option("train", "Split of a hub data set or datasets folder.")
    token_budget: int = option(2048, "Tokens in one forward pass; bounds memory.")

    def __post_init__(self) -> None:
        for name, what in (("model_name_or_path", "the SFT model"), ("dataset_name", "the rows to read")):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing: {what}")
        check_choice("dense_reward", self.dense_reward, REWARDS)
        check_at_least("token_budget", self.token_budget, 1)
        if self.dense_reward == "baseline_relative" and self.ref_model_name_or_path is None:
            raise ConfigError(
                "dense_reward=baseline_relative needs ref_model_name_or_path: an earlier checkpoint of the SFT run, "
                "or the model before SFT; with one model alone choose dense_reward=logprob"
            )


@dataclass
class AuditArguments(RewardArguments):
    """Arguments of `densepath audit`."""

    aggregation: str = option("min", "What rows are ranked by: min, the lowest token; mean of the reward, or sum.")
    max_length: int | None = option(None, "Longest demonstration in tokens; what lies beyond is flagged, not scored.")
    max_samples: int | None = option(None, "Rows audited, the first ones; all if None.")
    num_shown: int = option(20, "Rows in the table and on the page, the worst ones.")
    output_file: str = option("audit.jsonl", "One JSON object a row, the worst first; densepath view opens it.")
    html_file: str | None = option(None, "Also write the worst rows as a page, with each token coloured.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_at_least("num_shown", self.num_shown, 1)
        if self.html_file is not None and not self.html_file.endswith((".html", ".htm")):
            raise ConfigError(f"html_file={self.html_file} must end in .html; its JSON twin takes .json")
        for name, least in (("max_samples", 1), ("max_length", 2)):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), least)


@dataclass
class RankArguments(RewardArguments):
    """Arguments of `densepath rank`."""

    aggregation: str = option(
        "sum", "What completions are ranked by: sum (the return; favours longer ones), mean, or min, the lowest token."
    )
    verifier: str | None = option(
        None, "Also report how often the best is right: exact_match, final_number or package.module:function."
    )
    max_samples: int | None = option(None, "Prompts ranked; all if None.")
    output_file: str = option(
        "ranking.jsonl", "One JSON object a prompt: order, and score, sum, mean, length of each."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        if self.max_samples is not None:
            check_at_least("max_samples", self.max_samples, 1)


@dataclass
class SelectArguments(TokenizerArguments):
    """Arguments of `densepath select`."""

    run_dir: str = option("", "Folder of an SFT run: output_dir of densepath sft (or run), with its references.")
    dataset_name: str = option("", "Held-out demonstrations: JSONL, CSV, Parquet, a folder or a hub id.")
    dataset_train_split: str = option("train", "Split of a hub data set or datasets folder.")
    preference_dataset_name: str | None = option(None, "Rows with prompt, chosen, rejected, to compare references by.")
    verifier: str | None = option(
        None,
        "Program that checks the SFT policy's own completions: exact_match, final_number or package.module:function.",
    )
    criterion: str = option(
        "auto", "What the choice is made by: preference, verifier, altered, samples; auto is the first that there is."
    )
    include_base: bool = option(True, "The model before SFT is a candidate too, as 0.")
    ensemble: bool = option(True, "The mean probability of all references is a candidate too, as all.")
    max_samples: int = option(64, "Demonstrations, and preference rows, drawn.")
    num_generations: int = option(1, "Completions sampled for each prompt at temperature 1; 0 for none.")
    max_completion_length: int = option(128, "Longest sampled completion in tokens.")
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")
    token_budget: int = option(2048, "Tokens in one forward pass; bounds memory.")
    seed: int = option(0, "Seed of the draw, of sampling, of altered digits and of the bootstrap.")
    output_file: str | None = option(None, "Write all figures here as JSON.")

    def __post_init__(self) -> None:
        for name, what in (("run_dir", "an SFT run's folder"), ("dataset_name", "held-out demonstrations")):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing: {what}")
        check_choice("criterion", self.criterion, CRITERIA)
        for name, least in (("max_samples", 1), ("num_generations", 0), ("max_completion_length", 1)):
            check_at_least(name, getattr(self, name), least)
        check_at_least("token_budget", self.token_budget, 1)


@dataclass
class RewardEvalArguments(RewardArguments):
    """Arguments of `densepath reward-eval`."""

    base_model_name_or_path: str | None = option(
        None, "The model before SFT, whose log-probability is a baseline. None: the reference's takes its place."
    )
    task: str = option(
        "auto",
        "preference (prompt, chosen, rejected), first_error (prompt, steps, first_error), altered_numbers "
        "(demonstrations, one number of each altered), or auto: one of the first two, by the columns.",
    )
    aggregation: str = option(
        "mean", "How the reward's tokens become one number where it is compared: mean, sum, min."
    )
    step_separator: str = option("\\n", "What stands between two steps (first_error); \\n is a new line.")
    max_samples: int | None = option(None, "Rows drawn; all if None.")
    seed: int = option(0, "Seed of the draw, the altered digits and the bootstrap.")
    output_file: str | None = option(None, "Write all figures here as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("task", self.task, TASKS)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        if self.max_samples is not None:
            check_at_least("max_samples", self.max_samples, 1)
