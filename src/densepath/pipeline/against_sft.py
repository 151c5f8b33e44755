"""What says how good answers are in a run: a verifier, or a judge of them against the SFT model's."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from densepath.config.run import RunArguments
from densepath.evals.generation import Decoding
from densepath.evals.verifiers import AnswerJudge, Verifier, get_verifier
from densepath.io import read_json, write_json_atomic
from densepath.judging.against import AgainstAnswers, answers_by_prompt
from densepath.judging.build import CACHE, make_judge_against
from densepath.methods import SFTRun
from densepath.models.load import load_frozen
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


def answer_with_sft(run: RunFolder, sft: SFTRun, console: Console, title: str, splits: Sequence[str] = SPLITS) -> None:
    """Write what the SFT model answers to all held-out prompts: what the judge compares every arm with."""
    started, arguments = time.monotonic(), sft.arguments
    tokenizer, model = sft.tokenizer(), load_frozen(arguments, sft.model)
    found: dict[str, str] = {}
    with StageProgress(console, title, sum(len(sft.rows(split)) for split in splits), "completion") as progress:
        for split in splits:
            decoding = split_decoding(arguments, split, min(arguments.eval_temperatures))
            found |= answers_by_prompt(model, tokenizer, sft.rows(split), decoding)
            progress.advance(len(sft.rows(split)))
    write_json_atomic(run / ANSWERS, found)
    run.finish("sft_answers", started)


def check_of_run(sft: SFTRun, arguments: RunArguments) -> Callable[[FrozenPolicy], Verifier | AnswerJudge] | None:
    """Makes what a recipe judges answers by, beside a model in memory; None where it names nothing that judges."""
    if arguments.judge is not None:
        return functools.partial(judge_of_run, sft, arguments)
    name = arguments.verifier
    return None if name is None else lambda held: get_verifier(name)


def judge_of_run(sft: SFTRun, arguments: RunArguments, held: FrozenPolicy) -> AgainstAnswers:
    """The judge that a recipe names, with the answers of its SFT model; on the base of `held` where it is part of it.

    Raises:
        ConfigError, ModelError: a judge that cannot be made.
    """
    return make_judge_against(arguments, arguments, read_json(sft.path / ANSWERS), sft.path / CACHE, held)
