"""Arguments of the commands that use the reward without RL: score, rank, audit, reward-eval. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densepath.config.mixins import (
    DenseRewardArguments,
    EngineArguments,
    FrozenArguments,
    RewardArguments,
    RowsArguments,
)
from densepath.config.options import Arguments, check_choice, check_html_name, check_no_effect, check_reference, option
from densepath.errors import ConfigError, UsageError

AGGREGATIONS = ("mean", "sum", "min")
OUTPUT_SUFFIXES = (".jsonl", ".parquet")
FLAGS = ("duplicate", "near_duplicate", "over_long", "cut_off")
"""What can be wrong with a row, as `densepath.evals.audit.Flag` names it."""


@dataclass
class ShapeArguments(Arguments):
    """What becomes of the log-ratio."""

    reference_mean: str = option(
        "arithmetic",
        "How several references become one: arithmetic mean of their probabilities, or geometric.",
        choices=("arithmetic", "geometric"),
    )
    reward_scale: float = option(1.0, "Factor on the reward; for a DPO model and its reference, DPO's beta.")
    reward_clip: float | None = option(None, "Rewards are cut at plus and minus this, nats.")
    reward_floor: float | None = option(None, "Log-probabilities are raised to at least this, nats.")


@dataclass
class ShardArguments(Arguments):
    """How the work is divided."""

    window_size: int = option(
        256, "Rows sorted by length and packed together; a kill loses one window at most.", least=1
    )
    num_processes: int = option(1, "Processes on this machine, each with its own models.", least=1)
    num_shards: int = option(1, "Parts that the work is divided into, for calls on several machines.", least=1)
    shard_index: int = option(0, "Which of the num_shards parts this call does, from 0.")
    num_threads: int | None = option(
        None, "CPU threads of a process; if None, the cores divided by num_processes.", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shard_index < self.num_shards:
            raise ConfigError(f"shard_index={self.shard_index} must lie in 0..{self.num_shards - 1}, below num_shards")


@dataclass
class ScoreArguments(ShardArguments, ShapeArguments, EngineArguments, RowsArguments, RewardArguments):
    """Arguments of `densepath score`."""

    ref_model_name_or_path: list[str] = option(
        [], "Reference of the reward, or several. Not needed by logprob, inverse_bellman, or a saved DenseReward."
    )
    dataset_name: str = option(
        "",
        "Rows with prompt and completion, or messages, to score: JSONL, CSV, Parquet, a folder or a hub id.",
        required=True,
    )
    max_samples: int | None = option(None, "Rows scored, the first ones; all if None.", least=1)
    output_file: str = option(
        "scores.jsonl", "The rows with their rewards, in order; .jsonl or .parquet. The same command goes on."
    )
    remove_columns: list[str] = option([], "Columns of the rows that are left out of the output.")
    output_logprobs: bool = option(False, "Also write log pi_SFT and log pi_ref of each token.")
    strict: bool = option(False, "Stop at the first row that cannot be scored, instead of setting it aside.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_vllm and self.dense_reward == "inverse_bellman":
            raise ConfigError(
                "use_vllm gives log-probabilities alone, and dense_reward=inverse_bellman reads normalisers too: "
                "leave one of them out"
            )
        if Path(self.output_file).suffix not in OUTPUT_SUFFIXES:
            raise ConfigError(f"output_file={self.output_file} must end in {' or '.join(OUTPUT_SUFFIXES)}")

    def check_effect(self) -> None:
        """A mean is of several."""
        super().check_effect()
        if len(self.ref_model_name_or_path) < 2:
            check_no_effect(self, ["reference_mean"], "with fewer than two references")


@dataclass
class PairArguments(RowsArguments, DenseRewardArguments, FrozenArguments):
    """Which two models make the reward, and which rows it reads."""

    model_name_or_path: str = option("", "The SFT model: hub id, local folder or adapter folder.", required=True)
    dataset_name: str = option("", "Rows to read: JSONL, CSV, Parquet, a folder or a hub id.", required=True)
    ref_model_name_or_path: list[str] = option(
        [], "Reference, or several: earlier checkpoints of the SFT run, or the model before SFT. None: logprob alone."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reference(self.dense_reward, self.ref_model_name_or_path)


@dataclass
class AuditArguments(PairArguments):
    """Arguments of `densepath audit`."""

    aggregation: str = option(
        "min", "What rows are ranked by: min, the lowest token; mean of the reward, or sum.", choices=AGGREGATIONS
    )
    max_length: int | None = option(
        None, "Longest demonstration in tokens; what lies beyond is flagged, not scored.", least=2
    )
    max_samples: int | None = option(None, "Rows audited, the first ones; all if None.", least=1)
    num_shown: int = option(20, "Rows in the table and on the page, the worst ones.", least=1)
    output_file: str = option("audit.jsonl", "One JSON object a row, the worst first; densepath view opens it.")
    html_file: str | None = option(None, "Also write the worst rows as a page, with each token coloured.")
    drop: list[str] = option([], f"Flags whose rows are dropped: {', '.join(FLAGS)}.")
    drop_lowest: float = option(0.0, "Share of all rows that is dropped, those of the lowest score.", least=0)
    clean_file: str | None = option(None, "Write the rows that are kept here, as they were, as JSONL.")
    dropped_file: str | None = option(
        None, "Write the dropped rows here, with audit_reason and audit_score, as JSONL."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_html_name(self.html_file, "its JSON twin takes .json")
        for flag in self.drop:
            check_choice("drop", flag, FLAGS)
        if not self.drop_lowest < 1:
            raise ConfigError(f"drop_lowest={self.drop_lowest} must be below 1: it is a share of the rows")
        chosen, written = self.drop or self.drop_lowest, self.clean_file or self.dropped_file
        if bool(chosen) != bool(written):
            raise UsageError(
                "drop and drop_lowest say which rows go, clean_file and dropped_file where both parts are written: "
                f"give {'clean_file or dropped_file' if chosen else 'drop or drop_lowest'} too"
            )


@dataclass
class RankArguments(PairArguments):
    """Arguments of `densepath rank`."""

    aggregation: str = option(
        "sum",
        "What completions are ranked by: sum (the return; favours longer ones), mean, or min, the lowest token.",
        choices=AGGREGATIONS,
    )
    verifier: str | None = option(
        None, "Also report how often the best is right: exact_match, final_number or package.module:function."
    )
    max_samples: int | None = option(None, "Prompts ranked; all if None.", least=1)
    output_file: str = option(
        "ranking.jsonl", "One JSON object a prompt: order, and score, sum, mean, length of each."
    )
    best_file: str | None = option(None, "Also write each prompt with its best completion, to fine-tune on, as JSONL.")
    pairs_file: str | None = option(
        None, "Also write each prompt with its best completion as chosen and its worst as rejected, as JSONL."
    )


@dataclass
class RewardEvalArguments(PairArguments):
    """Arguments of `densepath reward-eval`."""

    base_model_name_or_path: str | None = option(
        None, "The model before SFT, whose log-probability is a baseline. None: the reference's takes its place."
    )
    task: str = option(
        "auto",
        "preference (prompt, chosen, rejected), first_error (prompt, steps, first_error), altered_numbers "
        "(demonstrations, one number of each altered), or auto: one of the first two, by the columns.",
        choices=("auto", "preference", "first_error", "altered_numbers"),
    )
    aggregation: str = option(
        "mean", "How the reward's tokens become one number where it is compared: mean, sum, min.", choices=AGGREGATIONS
    )
    step_separator: str = option("\\n", "What stands between two steps (first_error); \\n is a new line.")
    max_samples: int | None = option(None, "Rows drawn; all if None.", least=1)
    seed: int = option(0, "Seed of the draw, the altered digits and the bootstrap.", least=0)
    output_file: str | None = option(None, "Write all figures here as JSON.")

    def check_effect(self) -> None:
        """Only first-error rows have steps."""
        super().check_effect()
        if self.task in ("preference", "altered_numbers"):
            check_no_effect(self, ["step_separator"], f"with task={self.task}, whose rows have no steps")
