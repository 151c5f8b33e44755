"""What every arm is asked: completions of held-out prompts, checked, and measured under the models of its SFT run.

Each (split, temperature) is asked once and kept: `eval/<split>-<temperature>.json` holds the figures, an `ArmResult`,
and the `.jsonl` beside it the completions; a hidden file says what both hold. The temperatures of a split are asked
together, so that a model reads each prompt once to answer it, and once to score all that was answered.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from densepath.config.run import RunArguments
from densepath.data.encode import Encoded, encode_pairs
from densepath.data.rows import is_answered
from densepath.data.training_rows import Rows
from densepath.errors import DamagedFileError, DamageWarning
from densepath.evals.generation import Completion, Decoding, checked, decoding_name, generate_each
from densepath.io import changed_files, read_json, remove, sealed, write_json_atomic, write_jsonl_atomic
from densepath.methods import Policy, SFTRun
from densepath.models.compat import eos_token_ids
from densepath.models.references import fraction_of, reference_name
from densepath.models.sampling import Contrast
from densepath.pipeline.against_sft import SEEDS, check_of_run, split_decoding
from densepath.pipeline.selection import chosen
from densepath.progress import StageProgress
from densepath.records.arm import UNJUDGED, Arm, ArmResult
from densepath.records.codec import read_record, to_json
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import load_policies
from densepath.terminal import Console

NLL_ROWS = 100
"""Held-out demonstrations whose negative log-likelihood is measured."""


@dataclass(frozen=True)
class Evaluation:
    """What is asked, the same of every arm of a setting.

    Attributes:
        sft: the run whose held-out rows, SFT model and reference are read.
        arguments: temperatures, budget of tokens, verifier and seed.
        setting: name of the data and base model.
    """

    sft: SFTRun
    arguments: RunArguments
    setting: str

    @property
    def first(self) -> float:
        """The temperature at which variants are chosen and samples shown."""
        return self.arguments.eval_temperatures[0]

    @property
    def reference(self) -> str:
        """What the reward in the table is read with: the given or chosen reference, else the one nearest to half-way.

        Half-way is the paper's.
        """
        given = self.sft.arguments.reference
        found = chosen(self.sft.path) if given == "auto" else None
        if found is not None:
            return found.reference
        if given != "auto":
            return given
        fractions = [each for name in self.sft.references if (each := fraction_of(name)) is not None] or [0.0]
        return reference_name(min(fractions, key=lambda fraction: abs(fraction - 0.5)))

    def decoding(self, split: str, temperature: float) -> Decoding:
        """How completions of a split are drawn."""
        return split_decoding(self.arguments, split, temperature)

    def path(self, folder: Path, split: str, temperature: float) -> Path:
        """Where an arm's figures lie."""
        return folder / f"eval/{split}-{temperature:g}.json"

    def missing(self, folder: Path, splits: Sequence[str]) -> list[tuple[str, float]]:
        """(split, temperature) that an arm is to be asked: all of a split of which one is missing.

        They are scored together, and to the last bit only so.
        """
        temperatures = self.arguments.eval_temperatures
        return [
            (split, temperature)
            for split in splits
            if not all(_is_whole(self.path(folder, split, each)) for each in temperatures)
            for temperature in temperatures
        ]

    def results(self, folder: Path, arm: Arm) -> Iterator[ArmResult]:
        """What an arm was found to be, as far as it was asked."""
        for split in SEEDS:
            for temperature in self.arguments.eval_temperatures:
                path = self.path(folder, split, temperature)
                if path.exists():
                    yield replace(read_result(path), arm=arm, setting=self.setting)


def _is_whole(path: Path) -> bool:
    """Whether figures and completions are there and what was written; others are removed, and it is said."""
    files, seal = (path, path.with_suffix(".jsonl")), _seal(path)
    if not all(each.exists() for each in files):
        return False
    if not seal.exists():  # killed before it was written; both files are whole or not there
        write_json_atomic(seal, sealed(path.parent, files))
    with contextlib.suppress(DamagedFileError, AttributeError, TypeError):
        if not changed_files(path.parent, read_json(seal)):
            return True
    warnings.warn(
        f"{path}, or the .jsonl beside it: not what was written: it is made again", DamageWarning, stacklevel=2
    )
    for each in (*files, seal):
        remove(each)
    return False


def _seal(path: Path) -> Path:
    """What holds the fingerprints of figures and completions until the stage's marker does, too."""
    return path.with_name(f".{path.stem}.sealed")


def read_result(path: Path) -> ArmResult:
    """The figures that `evaluate` wrote.

    Raises:
        DamagedFileError: the file holds no such record.
    """
    return read_record(ArmResult, path)


def evaluate(
    policy: Policy, arm: Arm, evaluation: Evaluation, folder: Path, splits: Sequence[str], progress: StageProgress
) -> None:
    """Ask an arm what it was not asked yet, and write its figures and completions into its folder."""
    missing = evaluation.missing(folder, splits)
    if not missing:
        return
    models = _Models.load(policy, evaluation, scored=any(split == "test" for split, _ in missing))
    check = check_of_run(evaluation.sft, evaluation.arguments)
    checks = None if check is None else check(models.policy)
    for split in dict.fromkeys(split for split, _ in missing):
        rows = evaluation.sft.rows(split)
        temperatures = [temperature for of, temperature in missing if of == split]
        decodings = [evaluation.decoding(split, temperature) for temperature in temperatures]
        answers = [checked(found, rows, checks) for found in models.answer(rows, decodings, progress)]
        judged = checks is not None
        told = [
            _result(arm, evaluation, decoding, split, found, judged=judged)
            for decoding, found in zip(decodings, answers, strict=True)
        ]
        records = [[_without_prompt(completion) for completion in found] for found in answers]
        demonstrations: list[Encoded] = []
        if split == "test" or evaluation.arguments.verifier is None:
            demonstrations = models.demonstrations(
                rows, evaluation.arguments.completion_tokens, evaluation.sft.context
            )
        if split == "test":
            told, graded = models.measure(told, answers, demonstrations)
            records = [
                [{**record, **grades} for record, grades in zip(*each, strict=True)]
                for each in zip(records, graded, strict=True)
            ]
        elif demonstrations:
            nll = _nll(models.policy.score(*_ids(demonstrations)).logprobs)
            told = [replace(each, nll=nll) for each in told]
        for temperature, result, lines in zip(temperatures, told, records, strict=True):
            path = evaluation.path(folder, split, temperature)
            write_jsonl_atomic(path.with_suffix(".jsonl"), lines)
            write_json_atomic(path, to_json(result))
            write_json_atomic(_seal(path), sealed(path.parent, (path, path.with_suffix(".jsonl"))))


def _result(
    arm: Arm,
    evaluation: Evaluation,
    decoding: Decoding,
    split: str,
    completions: Sequence[Completion],
    *,
    judged: bool,
) -> ArmResult:
    """What the completions of a split are by themselves."""
    return ArmResult(
        arm=arm,
        setting=evaluation.setting,
        seed=evaluation.arguments.seed,
        decoding=decoding.name,
        split=split,
        values=tuple(UNJUDGED if c.metric is None else c.metric for c in completions) if judged else None,
        unjudged=tuple(c.row for c in completions if c.metric is None) if judged else (),
        by_order=tuple(c.by_order for c in completions) if any(c.by_order for c in completions) else None,
        lengths=tuple(len(c.completion_ids) for c in completions),
        truncated=sum(c.truncated for c in completions) / len(completions),
    )


def _without_prompt(completion: Completion) -> dict[str, Any]:
    kept = ("row", "completion_ids", "text", "truncated", "metric")
    return {name: getattr(completion, name) for name in kept}


@dataclass(frozen=True)
class _Models:
    """The models of an evaluation in memory.

    Attributes:
        policy: what is asked.
        contrast: the `FrozenPolicy` that decoding moves away from, and how.
        reward: of the SFT run; None where nothing is graded.
        tokenizer: of all.
    """

    policy: FrozenPolicy
    contrast: Contrast | None
    reward: DenseReward | None
    tokenizer: Any

    @classmethod
    def load(cls, policy: Policy, evaluation: Evaluation, *, scored: bool) -> _Models:
        sft, arguments = evaluation.sft, evaluation.arguments
        names = reward_names(sft, evaluation.reference, arguments) if scored else []
        second = [] if policy.contrast is None else [policy.contrast.model]
        models = load_policies([policy.model, *second, *names], **arguments.model_options(), device="auto")
        frozen = models[1 + len(second) :]
        reward = DenseReward(frozen[0], frozen[1:] or None, kind=arguments.dense_reward) if frozen else None
        contrast = policy.contrast and replace(policy.contrast, model=models[1])
        return cls(models[0], contrast, reward, sft.tokenizer())

    def answer(self, rows: Rows, decodings: Sequence[Decoding], progress: StageProgress) -> list[list[Completion]]:
        before = progress.done
        with self.policy.active() as model, self._contrast() as contrast:
            found = generate_each(
                model,
                self.tokenizer,
                rows,
                [replace(each, entropies=True) for each in decodings],
                contrast=contrast,
                on_progress=lambda done, _: progress.update(before + done),
            )
        progress.advance(0, tokens=sum(len(c.completion_ids) for completions in found for c in completions))
        return found

    @contextlib.contextmanager
    def _contrast(self) -> Iterator[Contrast | None]:
        """The model that decoding moves away from, to be called while the policy is active; None without one."""
        if self.contrast is None:
            yield None
        else:
            with self.contrast.model.beside() as second:
                yield replace(self.contrast, model=second)

    def demonstrations(self, rows: Rows, max_completion_length: int, context: int) -> list[Encoded]:
        """Held-out demonstrations whose likelihood is measured, cut where the context ends; none of a decoder."""
        if self.contrast is not None:
            return []
        found = []
        for pair in (encode_pairs(row, self.tokenizer)[-1] for row in rows[:NLL_ROWS] if is_answered(row)):
            limit = min(4 * max_completion_length, context - len(pair.prompt_ids))
            if limit > 0:
                found.append(Encoded(pair.prompt_ids, pair.completion_ids[:limit]))
        return found

    def measure(
        self, results: Sequence[ArmResult], answers: Sequence[Sequence[Completion]], demonstrations: list[Encoded]
    ) -> tuple[list[ArmResult], list[list[dict[str, list[float]]]]]:
        """The results with what the models say, and of each completion its rewards and log-probabilities under SFT.

        KL and entropy are expectations under the policy's own samples: of text at other temperatures they say nothing.
        """
        assert self.reward is not None
        own = self.policy == self.reward.sft
        texts = [Encoded(tuple(c.prompt_ids), tuple(c.completion_ids)) for found in answers for c in found]
        eos = eos_token_ids(self.reward.sft.model, self.tokenizer)
        asked = [*texts, *demonstrations] if own else texts  # so that the SFT model reads its prompts once
        scores = self.reward.score_ids(*_ids(asked), eos_token_ids=eos)
        nll = None
        if demonstrations:
            of_them = (
                self.policy.score(*_ids(demonstrations)).logprobs if not own else scores.sft_logprobs[len(texts) :]
            )
            nll = _nll(of_them)
        measured, graded, start = [], [], 0
        for result, found in zip(results, answers, strict=True):
            part = slice(start, start + len(found))
            start = part.stop
            result = replace(result, nll=nll, reward=tuple(scores.sums[part].tolist()))
            if result.decoding == decoding_name(1.0):
                sft = (float(values.sum()) for values in scores.sft_logprobs[part])
                kl = tuple(sum(c.logprobs) - of_sft for c, of_sft in zip(found, sft, strict=True))
                entropies = tuple(c.entropy for c in found if c.entropy is not None)
                result = replace(result, kl=kl, entropy=entropies if self.contrast is None else None)
            measured.append(result)
            pairs = zip(scores.rewards[part], scores.sft_logprobs[part], strict=True)
            graded.append([{"rewards": _rounded(r), "sft_logprobs": _rounded(p)} for r, p in pairs])
        return measured, graded


def _ids(texts: Sequence[Encoded]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [text.prompt_ids for text in texts], [text.completion_ids for text in texts]


def _nll(logprobs: Sequence[torch.Tensor]) -> tuple[float, ...]:
    """Negative log-likelihood of each demonstration, nats per token."""
    return tuple(-float(values.mean()) for values in logprobs)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def reward_names(sft: SFTRun, reference: str, arguments: RunArguments) -> list[str]:
    """The models of an SFT run's reward: the SFT model, and the reference where the reading needs one."""
    needed = arguments.dense_reward == "baseline_relative"
    return [str(sft.model), *([sft.reference(reference)] if needed else [])]


def ask(
    policy: Policy, arm: Arm, evaluation: Evaluation, folder: Path, splits: Sequence[str], console: Console
) -> None:
    """`evaluate` with a progress bar."""
    missing = evaluation.missing(folder, splits)
    if missing:
        total = sum(len(evaluation.sft.rows(split)) for split, _ in missing)
        with StageProgress(console, f"{arm.label}: evaluation", total, "completion") as progress:
            evaluate(policy, arm, evaluation, folder, splits, progress)
