"""Completions of held-out prompts: sampled, checked by a program, and measured under the models of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from densepath.data import encode_row_prompt
from densepath.evals.verifiers import Verifier
from densepath.models.compat import warn_of_spare_ids
from densepath.models.sampling import sample


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
        metric: the verifier's verdict, or None without one.
    """

    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    text: str
    truncated: bool
    metric: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_completion_length: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    seed: int,
    verifier: Verifier | None = None,
    num_generations: int = 1,
    second_model: Any = None,
    alpha: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Sample completions of each row's prompt and check them.

    The same seed gives every model the same uniforms, so that two models differ by no more than they must.

    Args:
        model: causal LM.
        tokenizer: its tokenizer.
        rows: with a prompt, and what the verifier reads.
        max_completion_length: tokens, EOS included.
        temperature: 0 is greedy.
        eos_token_ids: ids that end a completion.
        seed: of the sampling.
        verifier: program that checks a text against its row.
        num_generations: completions of each prompt.
        second_model: contrastive decoding against this model.
        alpha: its strength, 1/beta.
        on_progress: called with (completed, all) completions.

    Returns:
        Completions, prompt by prompt.
    """
    prompts = [encode_row_prompt(row, tokenizer) for row in rows]
    samples = sample(
        model,
        prompts,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        temperature=temperature,
        eos_token_ids=eos_token_ids,
        generator=torch.Generator().manual_seed(seed),
        pad_token_id=tokenizer.pad_token_id,
        second_model=second_model,
        alpha=alpha,
        on_progress=on_progress,
    )
    warn_of_spare_ids(samples.completion_ids, tokenizer)
    completions = []
    for index, ids in enumerate(samples.completion_ids):
        row = index // num_generations
        text = tokenizer.decode(ids, skip_special_tokens=True)
        completions.append(
            Completion(
                row=row,
                prompt_ids=prompts[row],
                completion_ids=ids,
                logprobs=samples.logprobs[index],
                text=text,
                truncated=samples.truncated[index],
                metric=None if verifier is None else float(verifier(text, rows[row])),
            )
        )
    return completions
