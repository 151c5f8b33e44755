"""The flat configuration of `densepath score`. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densepath.errors import ConfigError
from densepath.pipeline.options import REWARDS, TokenizerArguments, check_at_least, check_choice, option

OUTPUT_SUFFIXES = (".jsonl", ".parquet")


@dataclass
class ScoreArguments(TokenizerArguments):
    """Arguments of `densepath score`."""

    model_name_or_path: str = option(
        "smollm2-135m-instruct",
        "The SFT model: hub id, model folder, adapter folder or catalogue name; or the folder of a saved DenseReward.",
    )
    ref_model_name_or_path: list[str] = option(
        [], "Reference of the reward, or several. Not needed by logprob, inverse_bellman, or a saved DenseReward."
    )
    dense_reward: str = option("baseline_relative", "baseline_relative, logprob or inverse_bellman.")
    reference_mean: str = option(
        "arithmetic", "How several references become one: arithmetic mean of their probabilities, or geometric."
    )
    reward_scale: float = option(1.0, "Factor on the reward; for a DPO model and its reference, DPO's beta.")
    reward_clip: float | None = option(None, "Rewards are cut at plus and minus this, nats.")
    reward_floor: float | None = option(None, "Log-probabilities are raised to at least this, nats.")
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")
    device: str = option("auto", "cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one.")

    dataset_name: str = option("", "Rows to score, in any TRL format: JSONL, CSV, Parquet, a folder or a hub id.")
    dataset_train_split: str = option("train", "Split of a hub data set or datasets folder.")
    max_samples: int | None = option(None, "Rows scored, the first ones; all if None.")
    output_file: str = option(
        "scores.jsonl", "The rows with their rewards, in order; .jsonl or .parquet. The same command goes on."
    )
    remove_columns: list[str] = option([], "Columns of the rows that are left out of the output.")
    output_logprobs: bool = option(False, "Also write log pi_SFT and log pi_ref of each token.")
    strict: bool = option(False, "Stop at the first row that cannot be scored, instead of setting it aside.")

    token_budget: int = option(2048, "Tokens in one forward pass; bounds memory.")
    window_size: int = option(256, "Rows sorted by length and packed together; a kill loses one window at most.")
    num_processes: int = option(1, "Processes on this machine, each with its own models.")
    num_shards: int = option(1, "Parts that the work is divided into, for calls on several machines.")
    shard_index: int = option(0, "Which of the num_shards parts this call does, from 0.")
    num_threads: int | None = option(None, "CPU threads of a process; if None, the cores divided by num_processes.")

    def __post_init__(self) -> None:
        check_choice("dense_reward", self.dense_reward, REWARDS)
        check_choice("reference_mean", self.reference_mean, ("arithmetic", "geometric"))
        for name in ("token_budget", "window_size", "num_processes", "num_shards"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("max_samples", "num_threads"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        if not 0 <= self.shard_index < self.num_shards:
            raise ConfigError(f"shard_index={self.shard_index} must lie in 0..{self.num_shards - 1}, below num_shards")
        if Path(self.output_file).suffix not in OUTPUT_SUFFIXES:
            raise ConfigError(f"output_file={self.output_file} must end in {' or '.join(OUTPUT_SUFFIXES)}")
