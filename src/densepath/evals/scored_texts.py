"""Held-out texts as ids, each scored once under the SFT model and every candidate reference."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from densepath.core.rewards import baseline_relative
from densepath.data.context import check_context
from densepath.data.encode import Encoded, encode_pairs
from densepath.data.rows import DataFormat, Row, detect_format, is_answered
from densepath.errors import DataError, ModelError
from densepath.evals.altered_numbers import alter_answer
from densepath.evals.generation import Completion
from densepath.evals.preferences import check_preference, encode_preference
from densepath.rewards.frozen import FrozenPolicy

Model: TypeAlias = Any
"""A path or hub id, a model, or a `FrozenPolicy`."""


@dataclass(frozen=True)
class TextScores:
    """What one model says of texts.

    Attributes:
        logprobs: one (completion tokens,) float64 tensor for each text, nats.
        hidden: of each demonstration, (completion tokens, width) last hidden states; empty where the model's head is
            not plain.
    """

    logprobs: list[Tensor]
    hidden: list[Tensor]


@dataclass
class Texts:
    """What is scored under every model, and where each part lies in it.

    Attributes:
        flat: the distinct texts.
        demonstrations: place of the completion of each row that holds one.
        demonstrated: the rows that these are of, counted from 0.
        twins: place of the same with one number altered; None where there is no number.
        samples: places of the SFT policy's own completions, row by row.
        verdicts: the verifier's of them, NaN where a judge could not say; empty lists without either.
        pairs: places of chosen and rejected completions.
        unused: preference rows that say nothing: equal twins, or longer than the context.
    """

    flat: list[Encoded] = field(default_factory=list)
    demonstrations: list[int] = field(default_factory=list)
    demonstrated: list[int] = field(default_factory=list)
    twins: list[int | None] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    verdicts: list[list[float]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    places: dict[Encoded, int] = field(default_factory=dict)
    unused: int = 0

    def add(self, pair: Encoded) -> int:
        """Its place; equal texts have one, so that rounding cannot part them."""
        if pair not in self.places:
            self.places[pair] = len(self.flat)
            self.flat.append(pair)
        return self.places[pair]

    def add_samples(self, completions: Sequence[Completion], rows: int) -> None:
        """Add the SFT policy's own completions of the rows, with their verdicts if they have any."""
        self.samples = [[] for _ in range(rows)]
        self.verdicts = [[] for _ in range(rows)]
        judged = any(completion.metric is not None for completion in completions)
        for completion in completions:
            pair = Encoded(tuple(completion.prompt_ids), tuple(completion.completion_ids))
            self.samples[completion.row].append(self.add(pair))
            if judged:
                self.verdicts[completion.row].append(math.nan if completion.metric is None else completion.metric)

    def scores(
        self, policy: FrozenPolicy, token_budget: int, on_progress: Callable[[int], None] | None = None
    ) -> TextScores:
        """What a model says of every text, in one pass."""
        prompts, ids = ([getattr(pair, name) for pair in self.flat] for name in ("prompt_ids", "completion_ids"))
        found = policy.score(prompts, ids, token_budget, on_progress, set(self.demonstrations))
        hidden = [found.hidden[place] for place in self.demonstrations if place in found.hidden]
        return TextScores([values.double() for values in found.logprobs], hidden)


def collect_texts(
    rows: Sequence[Row],
    preferences: Sequence[Row],
    tokenizer: Any,
    context: int,
    seed: int,
    source: str,
    *,
    altered: bool = True,
) -> Texts:
    """The rows' demonstrations, their twins with an altered number (if asked), and the preference pairs; no samples.

    Raises:
        DataError: a row that cannot be used, named.
    """
    texts = Texts()
    for index, row in enumerate(rows):
        if detect_format(row) is not DataFormat.TEXT and not is_answered(row):
            continue
        try:
            pair = encode_pairs(row, tokenizer)[-1]
            twin = alter_answer(row, tokenizer, random.Random(f"{seed} {index}")) if altered else ""
        except (DataError, ModelError) as error:
            raise type(error)(f"{source}, row {index + 1}: {error}") from error
        check_context(len(pair.prompt_ids) + len(pair.completion_ids), context, f"{source}, row {index + 1}")
        texts.demonstrations.append(texts.add(pair))
        texts.demonstrated.append(index)
        texts.twins.append(None if isinstance(twin, str) else texts.add(twin.completions[1]))
    for index, row in enumerate(preferences):
        try:
            check_preference(row)
            judged = encode_preference(row, tokenizer)
        except (DataError, ModelError) as error:
            raise type(error)(f"the preference rows, row {index + 1}: {error}") from error
        if isinstance(judged, str) or any(
            len(c.prompt_ids) + len(c.completion_ids) > context for c in judged.completions
        ):
            texts.unused += 1
            continue
        texts.pairs.append((texts.add(judged.completions[0]), texts.add(judged.completions[1])))
    return texts


def dense_rewards(sft: Sequence[Tensor], ref: Sequence[Tensor]) -> list[Tensor]:
    """`log pi_SFT - log pi_ref` of every token of every text, nats."""
    return [baseline_relative(a, b, torch.ones_like(a, dtype=torch.bool)) for a, b in zip(sft, ref, strict=True)]
