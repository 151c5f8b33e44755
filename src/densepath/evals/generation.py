"""Completions of held-out prompts: sampled, checked by a program, and measured under the models of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from densepath.data.encode import encode_row_prompt
from densepath.errors import UsageError
from densepath.evals.verifiers import AnswerJudge, Verifier
from densepath.models.compat import eos_token_ids, warn_of_spare_ids
from densepath.models.sampling import DEFAULT_TOKEN_BUDGET, Contrast, Samples, sample
from densepath.rewards.vllm_policy import VLLMPolicy


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        row: index of its prompt.
        prompt_ids: ids of the prompt.
        completion_ids: ids sampled, EOS included.
        logprobs: log-probability of each under the policy that sampled it (at temperature 1), nats.
        text: decoded without special tokens.
        truncated: no EOS came within the budget.
        metric: the verdict of the verifier or judge; None without one, or where the judge could not say it.
    """

    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    text: str
    truncated: bool
    metric: float | None


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
    """

    temperature: float
    max_completion_length: int
    num_generations: int = 1
    seed: int = 0
    token_budget: int = DEFAULT_TOKEN_BUDGET

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
    prompts = [encode_row_prompt(row, tokenizer) for row in rows]
    shared: dict[str, Any] = {
        "num_generations": decoding.num_generations,
        "max_completion_length": decoding.max_completion_length,
        "temperature": decoding.temperature,
    }
    if isinstance(model, VLLMPolicy):
        if contrast is not None:
            raise UsageError("vLLM samples from one model: leave use_vllm out to move away from a second one")
        ends = eos_token_ids(model.model, tokenizer)
        samples = Samples(*model.sample(prompts, eos_token_ids=ends, seed=decoding.seed, **shared))
        if on_progress is not None:
            on_progress(len(samples.completion_ids), len(samples.completion_ids))
    else:
        samples = sample(
            model,
            prompts,
            eos_token_ids=eos_token_ids(model, tokenizer),
            generator=torch.Generator().manual_seed(decoding.seed),
            pad_token_id=tokenizer.pad_token_id,
            token_budget=decoding.token_budget,
            contrast=contrast,
            on_progress=on_progress,
            **shared,
        )
    warn_of_spare_ids(samples.completion_ids, tokenizer)
    return [
        Completion(
            row=index // decoding.num_generations,
            prompt_ids=prompts[index // decoding.num_generations],
            completion_ids=ids,
            logprobs=samples.logprobs[index],
            text=tokenizer.decode(ids, skip_special_tokens=True),
            truncated=samples.truncated[index],
            metric=None,
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
        DataError: a row that the verifier cannot check against. JudgeError: a judge that does not work.
    """
    if verifier is None:
        return list(completions)
    if not callable(verifier):
        found = verifier.judged([each.text for each in completions], [rows[each.row] for each in completions])
        return [replace(each, metric=metric) for each, metric in zip(completions, found, strict=True)]
    return [replace(each, metric=float(verifier(each.text, rows[each.row]))) for each in completions]
