"""Arguments of `densepath judge`. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from densepath.config.answers import AnswerArguments
from densepath.config.judge import WHO_JUDGES, JudgeArguments, parse_judge
from densepath.config.mixins import DenseRewardArguments, FrozenArguments
from densepath.config.options import check_no_effect, check_temperature, option
from densepath.errors import ConfigError


@dataclass
class JudgeCommandArguments(JudgeArguments, DenseRewardArguments, FrozenArguments):
    """Arguments of `densepath judge`."""

    benchmark: str = option(
        "",
        "What is asked: alpaca_eval, arena_hard, mt_bench or lima from the hub; NAME:FILE from its file; or any FILE "
        "of prompts.",
        required=True,
    )
    models: list[str] = option([], "Models to judge: hub ids, folders, or files with their answers.", required=True)
    judge: str | None = option(None, WHO_JUDGES, required=True)
    baseline: list[str] = option(
        [],
        "What each is compared with: a model, a file with answers, or the name of a generator whose answers come with "
        "the benchmark. None: the benchmark's own.",
    )
    second_judge: str | None = option(
        None, "Judges the same pairs too, as verifier:exact_match: how far the two agree beyond chance."
    )
    max_samples: int | None = option(None, "Questions asked, the first ones; all if None.", least=1)
    temperature: float | None = option(None, "Of the answers; 0 is greedy. None: the benchmark's own.")
    max_completion_length: int = option(1024, "Longest answer to a turn in tokens, EOS included.", least=1)
    seed: int = option(0, "Seed of the answers.", least=0)
    gamed_file: str | None = option(
        None, "AlpacaEval's df_gamed.csv, for its length-controlled win rate as it is published."
    )
    reference_answers: str | None = option(
        None,
        "File of right answers that the judge is shown, as MT-Bench's reference_answer/gpt-4.jsonl. None: those that "
        "stand beside the questions.",
    )
    model_name_or_path: str | None = option(
        None, "Colours the answers on the page: the SFT model of a dense reward, or the folder of a saved one."
    )
    ref_model_name_or_path: list[str] = option([], "The reference of that reward, or several.")
    allow_empty: bool = option(
        False, "Judge answers of a file that are empty as they are, and count them; they are an error else."
    )
    num_shown: int = option(10, "Pairs on the page, the most decisive ones of each model.", least=0)
    output_dir: str = option("judged", "Where answers, games, results and the page go. The same command goes on.")
    dry_run: bool = option(False, "Only say what judging would take: calls, tokens, cost.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None:
            check_temperature("temperature=", self.temperature)
        if self.second_judge is not None:
            parse_judge(self.second_judge, "second_judge")
            if self.second_judge == self.judge:
                raise ConfigError(f"second_judge={self.second_judge} is judge itself; name another")
        if self.gamed_file is not None and self.benchmark.partition(":")[0] != "alpaca_eval":
            raise ConfigError(
                f"gamed_file is of AlpacaEval's prompts, and has no effect with benchmark={self.benchmark}: leave it "
                "out, or give benchmark=alpaca_eval, or alpaca_eval:FILE"
            )
        if self.ref_model_name_or_path and self.model_name_or_path is None:
            raise ConfigError(
                "ref_model_name_or_path needs model_name_or_path, the SFT model that it is the reference of"
            )

    def check_effect(self) -> None:
        """A reading is of the models that colour the page."""
        super().check_effect()
        if self.model_name_or_path is None:
            check_no_effect(self, ["dense_reward"], "without model_name_or_path")

    def answering(self, model: str, generator: str) -> AnswerArguments:
        """How one of the models is asked."""
        shared = {f.name for f in fields(AnswerArguments)} & {f.name for f in fields(self)}
        values: dict[str, Any] = {name: getattr(self, name) for name in shared - {"token_budget"}}
        return AnswerArguments(**{**values, "model_name_or_path": model, "generator": generator})
