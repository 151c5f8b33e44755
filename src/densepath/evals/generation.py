"""Completions of held-out prompts: sampled, checked by a program, and measured under the models of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from statistics import fmean
from typing import Any

import torch

from densepath.data.encode import encode_row_prompt
from densepath.data.rows import prompt_of, short, turn_text
from densepath.errors import DataError, UsageError
from densepath.evals.verifiers import AnswerJudge, Verifier, verdict_on
from densepath.models.compat import eos_token_ids, warn_of_spare_ids
from densepath.models.sampling import DEFAULT_TOKEN_BUDGET, Contrast, Draw, Samples, Sampling, sample_each
from densepath.rewards.vllm_policy import VLLMPolicy


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        row: index of its prompt.
        prompt_ids: ids of the prompt.
        completion_ids: ids sampled, EOS included.
        logprobs: log-probability of each under the policy and at the temperature that it was sampled at (at 1 where it
            was greedy), nats.
        text: decoded without special tokens.
        truncated: no EOS came within the budget.
        metric: the verdict of the verifier or judge; None without one, or where the judge could not say it.
        by_order: of a judge that was shown the answer first and second, what it said each time; None else.
        entropy: of the distributions that its tokens were drawn from, mean over them, nats; None if it is not kept.
        of_models: log-probability of the whole completion under the model and under the one that decoding moves away
            from, as both are, nats; None without a second one.
    """

    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    text: str
    truncated: bool
    metric: float | None
    entropy: float | None = None
    of_models: tuple[float, float] | None = None
    by_order: tuple[float, float] | None = None


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn.

    Attributes:
        temperature: 0 is greedy.
        max_completion_length: tokens, EOS included.
        num_generations: completions of each prompt.
        seed: of the sampling. The same one gives every model the same uniforms, so that two models differ by no more
            than they must.
        token_budget: most tokens in the cache of one batch; changes no completion.
        entropies: whether the entropy of each completion is kept.
    """

    temperature: float
    max_completion_length: int
    num_generations: int = 1
    seed: int = 0
    token_budget: int = DEFAULT_TOKEN_BUDGET
    entropies: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return decoding_name(self.temperature)


def decoding_name(temperature: float) -> str:
    """What tables call it.

    >>> decoding_name(0), decoding_name(0.5)
    ('greedy', 'temperature 0.5')
    """
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    decoding: Decoding,
    *,
    contrast: Contrast | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Sample completions of each row's prompt.

    Args:
        model: causal LM, or a `VLLMPolicy`.
        tokenizer: its tokenizer.
        rows: with a prompt.
        decoding: how they are drawn.
        contrast: a second model that is moved away from, and how.
        on_progress: called with (completed, all) completions.

    Returns:
        Completions, prompt by prompt; `checked` gives them a metric.
    """
    return generate_each(model, tokenizer, rows, [decoding], contrast=contrast, on_progress=on_progress)[0]


def generate_each(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    decodings: Sequence[Decoding],
    *,
    contrast: Contrast | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """`generate` for several decodings, which differ in temperature, number and seed; each prompt is read once."""
    (budget, length), *others = {(each.token_budget, each.max_completion_length) for each in decodings}
    if others:
        raise ValueError("decodings of one call share max_completion_length and token_budget")
    prompts = [encode_row_prompt(row, tokenizer) for row in rows]
    ends = eos_token_ids(model.model if isinstance(model, VLLMPolicy) else model, tokenizer)
    if isinstance(model, VLLMPolicy):
        if contrast is not None:
            raise UsageError("vLLM samples from one model: leave use_vllm out to move away from a second one")
        found = _by_vllm(model, prompts, decodings, ends)
        if on_progress is not None:
            total = sum(len(samples.completion_ids) for samples in found)
            on_progress(total, total)
    else:
        sampling = Sampling(
            length,
            ends,
            tokenizer.pad_token_id,
            token_budget=budget,
            contrast=contrast,
            keep_entropies=any(each.entropies for each in decodings),
        )
        found = sample_each(model, prompts, [_draw(each) for each in decodings], sampling, on_progress)
    warn_of_spare_ids([ids for samples in found for ids in samples.completion_ids], tokenizer)
    return [_completions(samples, prompts, tokenizer) for samples in found]


def _draw(decoding: Decoding) -> Draw:
    return Draw(decoding.temperature, decoding.num_generations, torch.Generator().manual_seed(decoding.seed))


def _by_vllm(
    model: VLLMPolicy, prompts: Sequence[list[int]], decodings: Sequence[Decoding], ends: Sequence[int]
) -> list[Samples]:
    return [
        Samples(
            *model.sample(
                prompts,
                num_generations=each.num_generations,
                max_completion_length=each.max_completion_length,
                temperature=each.temperature,
                eos_token_ids=ends,
                seed=each.seed,
            )
        )
        for each in decodings
    ]


def _completions(samples: Samples, prompts: Sequence[list[int]], tokenizer: Any) -> list[Completion]:
    each = len(samples.completion_ids) // max(1, len(prompts))
    return [
        Completion(
            row=index // each,
            prompt_ids=prompts[index // each],
            completion_ids=ids,
            logprobs=samples.logprobs[index],
            text=tokenizer.decode(ids, skip_special_tokens=True),
            truncated=samples.truncated[index],
            metric=None,
            entropy=fmean(samples.entropies[index]) if samples.entropies else None,
            of_models=(fsum(samples.of_models[index][0]), fsum(samples.of_models[index][1]))
            if samples.of_models
            else None,
        )
        for index, ids in enumerate(samples.completion_ids)
    ]


def checked(
    completions: Sequence[Completion],
    rows: Sequence[Mapping[str, Any]],
    verifier: Verifier | AnswerJudge | None,
) -> list[Completion]:
    """The completions with what a program or a judge says of each; as they are without one.

    Raises:
        DataError: a verifier that fails or says no finite number, with the prompt (1-based). JudgeError: a judge that
            does not work.
    """
    if verifier is None:
        return list(completions)
    if not callable(verifier):
        found = verifier.judged([each.text for each in completions], [rows[each.row] for each in completions])
        return [
            replace(each, metric=said.value, by_order=said.by_order)
            for each, said in zip(completions, found, strict=True)
        ]
    return [replace(each, metric=_verdict(verifier, each, rows[each.row])) for each in completions]


def _verdict(verifier: Verifier, completion: Completion, row: Mapping[str, Any]) -> float:
    try:
        return verdict_on(verifier, completion.text, row)
    except DataError as error:
        prompt = prompt_of(row)
        asked = prompt if isinstance(prompt, str) else turn_text(prompt[-1])
        raise DataError(f"prompt {completion.row + 1} ({short(asked)!r}): {error}") from error
