"""The judge of a run: answers of every arm against those of the SFT model at its lowest temperature."""

from __future__ import annotations

import time

from densepath.config.run import RunArguments
from densepath.evals.generation import Decoding
from densepath.io import read_json, write_json_atomic
from densepath.judging.against import AgainstAnswers, answers_by_prompt
from densepath.judging.build import CACHE, make_judge_against
from densepath.methods import SFTRun
from densepath.models.load import load_frozen, load_tokenizer
from densepath.pipeline.run_folder import RunFolder
from densepath.progress import StageProgress
from densepath.records.arm import SPLITS
from densepath.rewards.frozen import FrozenPolicy
from densepath.terminal import Console

ANSWERS = "sft_answers.json"
SEEDS = {"validation": 0, "test": 1}
"""Added to twice the run's seed: every arm draws the same random numbers, and validation others than test."""


def split_decoding(arguments: RunArguments, split: str, temperature: float) -> Decoding:
    """How every arm's completions of a split are drawn."""
    return Decoding(temperature, arguments.completion_tokens, seed=2 * arguments.seed + SEEDS[split])


def answer_with_sft(run: RunFolder, sft: SFTRun, console: Console, title: str) -> None:
    """Write what the SFT model answers to all held-out prompts: what the judge compares every arm with."""
    started, arguments = time.monotonic(), sft.arguments
    tokenizer, model = load_tokenizer(str(sft.model)), load_frozen(arguments, sft.model)
    found: dict[str, str] = {}
    with StageProgress(console, title, sum(len(sft.rows(split)) for split in SPLITS), "completion") as progress:
        for split in SPLITS:
            decoding = split_decoding(arguments, split, min(arguments.eval_temperatures))
            found |= answers_by_prompt(model, tokenizer, sft.rows(split), decoding)
            progress.advance(len(sft.rows(split)))
    write_json_atomic(run / ANSWERS, found)
    run.finish("sft_answers", started)


def judge_of_run(sft: SFTRun, arguments: RunArguments, held: FrozenPolicy) -> AgainstAnswers:
    """The judge that a recipe names, with the answers of its SFT model; on the base of `held` where it is part of it.

    Raises:
        ConfigError, ModelError: a judge that cannot be made.
    """
    return make_judge_against(arguments, arguments, read_json(sft.path / ANSWERS), sft.path / CACHE, held)
