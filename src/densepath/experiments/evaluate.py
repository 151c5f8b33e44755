"""A cell's completions of held-out prompts, checked by a program; each prompt set is sampled once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.config.run import RunArguments
from densepath.evals.generation import Completion, Decoding, checked, generate
from densepath.evals.verifiers import get_verifier
from densepath.io import read_json, write_json_atomic
from densepath.models.compat import eos_token_ids
from densepath.models.load import load_tokenizer
from densepath.pipeline.data import read_split
from densepath.pipeline.evaluation import dense_reward
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.training import load_frozen, reference_path
from densepath.records.arm import ArmResult, Budget
from densepath.rewards.dense import DenseReward

SEEDS = {"validation": 0, "test": 1}
"""Added to the run's seed: every method draws the same random numbers, and validation others than test."""


@dataclass(frozen=True)
class Policy:
    """What is evaluated.

    Attributes:
        model: folder of its weights.
        contrast: folder of the model that contrastive decoding moves away from, or None.
        alpha: strength of the contrast.
    """

    model: Path
    contrast: str | None = None
    alpha: float = 0.0


def decoding(temperature: float) -> str:
    """What tables call it.

    >>> decoding(0), decoding(0.5)
    ('greedy', 'temperature 0.5')
    """
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def evaluate(
    policy: Policy, split: str, source: RunFolder, folder: Path, arguments: RunArguments, *, report_reference: str
) -> None:
    """Write `eval/<split>-<temperature>.json` for each temperature; what is there already is kept.

    Args:
        policy: what is sampled from.
        split: validation or test.
        source: run of the SFT model.
        folder: the cell's.
        arguments: temperatures, verifier, seed.
        report_reference: reference of the reward in the table, the same for all cells of a setting.
    """
    missing = [t for t in arguments.eval_temperatures if not _path(folder, split, t).exists()]
    if not missing:
        return
    rows = read_split(source, split)
    tokenizer = load_tokenizer(str(source / "sft/model"))
    model = load_frozen(arguments, policy.model)
    second = None if policy.contrast is None else load_frozen(arguments, policy.contrast)
    eos = eos_token_ids(model, tokenizer)
    reward: DenseReward | None = None
    for temperature in missing:
        completions = generate(
            model,
            tokenizer,
            rows,
            Decoding(
                temperature,
                arguments.max_completion_length,
                seed=2 * arguments.seed + SEEDS[split],
                alpha=policy.alpha,
            ),
            second_model=second,
        )
        completions = checked(completions, rows, get_verifier(arguments.verifier or ""))
        record: dict[str, Any] = {
            "values": [c.metric for c in completions],
            "lengths": [len(c.completion_ids) for c in completions],
            "truncated": sum(c.truncated for c in completions) / len(completions),
            "kl": None,
            "reward": None,
            "texts": [c.text for c in completions],
        }
        if temperature == 1 and split == "test":
            reward = reward or dense_reward(
                source / "sft/model", reference_path(source, arguments, report_reference), arguments
            )
            record |= _under_the_models(completions, reward, eos)
        write_json_atomic(_path(folder, split, temperature), record)


def _under_the_models(
    completions: Sequence[Completion], reward: DenseReward, eos: Sequence[int]
) -> dict[str, list[float]]:
    """Log-ratio to SFT, whose mean estimates the KL to it, and the reward of each completion, nats."""
    scores = reward.score_ids(
        [c.prompt_ids for c in completions], [c.completion_ids for c in completions], eos_token_ids=eos
    )
    sft = (float(values.sum()) for values in scores.sft_logprobs)
    kl = [sum(c.logprobs) - of_sft for c, of_sft in zip(completions, sft, strict=True)]
    return {"kl": kl, "reward": scores.sums.tolist()}


def read_results(
    folder: Path, split: str, temperatures: Sequence[float], *, budget: Budget, **names: Any
) -> list[ArmResult]:
    """The cell's results on a split, as far as they are there.

    Args:
        folder: the cell's.
        split: validation or test.
        temperatures: of the evaluation.
        budget: what training cost beyond SFT.
        names: setting, arm and seed of the cell.
    """
    found = []
    for temperature in temperatures:
        path = _path(folder, split, temperature)
        if path.exists():
            record = read_json(path)
            found.append(
                ArmResult(
                    decoding=decoding(temperature),
                    split=split,
                    values=tuple(record["values"]),
                    lengths=tuple(record["lengths"]),
                    truncated=record["truncated"],
                    kl=record["kl"],
                    reward=record["reward"],
                    budget=budget,
                    **names,
                )
            )
    return found


def read_values(folder: Path, split: str, temperature: float) -> list[float] | None:
    """The verdicts of a cell's completions, or None where they are not there."""
    path = _path(folder, split, temperature)
    return [float(value) for value in read_json(path)["values"]] if path.exists() else None


def _path(folder: Path, split: str, temperature: float) -> Path:
    return folder / f"eval/{split}-{temperature:g}.json"
