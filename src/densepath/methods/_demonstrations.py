"""The training demonstrations as what a model says of them: encoded once, scored under any model, sorted by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from densepath.data.encode import Encoded, encode_pairs
from densepath.data.rows import Row
from densepath.errors import ConfigError
from densepath.models.logits import causal_lm
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.progress import StageProgress
from densepath.rewards.frozen import FrozenPolicy
from densepath.terminal import Console


@dataclass(frozen=True)
class Demonstrations:
    """Rows with the pairs that are scored of them, one for each assistant turn that is an action.

    Attributes:
        rows: the rows that have one.
        numbers: where each stands among the training rows.
        pairs: (row, pair) of every turn, cut as SFT cuts it.
    """

    rows: Sequence[Row]
    numbers: Sequence[int]
    pairs: Sequence[tuple[int, Encoded]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> Tensor:
        """(rows,) float64, number of action tokens, EOS included."""
        return self._sums([float(len(pair.completion_ids)) for _, pair in self.pairs])

    @property
    def first_prompts(self) -> list[Sequence[int]]:
        """(rows,) ids of what stands before each row's first action."""
        firsts: dict[int, Sequence[int]] = {}
        for row, pair in self.pairs:
            firsts.setdefault(row, pair.prompt_ids)
        return [firsts[row] for row in range(len(self))]

    def log_likelihoods(self, policy: FrozenPolicy, console: Console, title: str) -> Tensor:
        """(rows,) float64, `sum_t log pi(y_t)` over the row's action tokens, nats; progress goes to the console."""
        prompts = [pair.prompt_ids for _, pair in self.pairs]
        with StageProgress(console, title, len(self.pairs), "completion") as progress:
            completions = [pair.completion_ids for _, pair in self.pairs]
            scores = policy.score(prompts, completions, on_progress=progress.advance)
        return self._sums([float(values.double().sum()) for values in scores.logprobs])

    def _sums(self, values: Sequence[float]) -> Tensor:
        owners = torch.tensor([row for row, _ in self.pairs])
        return torch.zeros(len(self.rows), dtype=torch.float64).index_add_(
            0, owners, torch.tensor(values, dtype=torch.float64)
        )


def encoded(rows: Sequence[Row], tokenizer: Any, limit: int) -> Demonstrations:
    """The rows with at least one action within `limit` tokens."""
    kept: list[Row] = []
    numbers: list[int] = []
    pairs: list[tuple[int, Encoded]] = []
    for number, row in enumerate(rows):
        turns = [pair for pair in encode_pairs(row, tokenizer, limit) if len(pair.prompt_ids) < limit]
        cut = [Encoded(pair.prompt_ids, pair.completion_ids[: limit - len(pair.prompt_ids)]) for pair in turns]
        if cut:
            pairs += [(len(kept), pair) for pair in cut]
            kept.append(row)
            numbers.append(number)
    return Demonstrations(kept, numbers, pairs)


def check_kinds(rows: Sequence[Row], column: str | None) -> None:
    """Refuse training rows of which one does not say its kind.

    Raises:
        ConfigError: it names the first one.
    """
    missing = [number for number, row in enumerate(rows, 1) if column is not None and row.get(column) is None]
    if missing:
        raise ConfigError(
            f"purify_kind_column={column}: training row {missing[0]} has no such column; give it one, or leave the "
            "kinds to clusters of the prompts"
        )


def kinds_by_column(rows: Sequence[Row], column: str) -> tuple[Tensor, list[str]]:
    """(rows,) int64 kind of each row, and the kinds' names, by what stands in a column that every row has."""
    names = sorted({str(row[column]) for row in rows})
    return torch.tensor([names.index(str(row[column])) for row in rows]), names


def kinds_by_prompt(demonstrations: Demonstrations, model: Any, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Kinds as clusters of the prompts: k-means over the mean hidden state of the model's middle layer.

    Args:
        demonstrations: whose first prompts are read.
        model: causal LM.
        count: most clusters; for one the model is not asked.
        seed: of k-means++.

    Returns:
        (rows,) int64 and the clusters' names. Clusters that came out empty are left out.
    """
    together = torch.zeros(len(demonstrations), dtype=torch.int64), ["all"]
    if count < 2:
        return together
    states = _mean_states(model, demonstrations.first_prompts)
    count = min(count, len(np.unique(states, axis=0)))
    if count < 2:
        return together
    spread = states.std(axis=0)
    _, labels = kmeans2(states / np.where(spread > 0, spread, 1.0), count, minit="++", seed=seed)
    found, kinds = np.unique(labels, return_inverse=True)
    return torch.from_numpy(kinds.astype(np.int64)), [f"cluster {index + 1}" for index in range(len(found))]


def _mean_states(model: Any, prompts: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(prompts, width): hidden state of the middle layer, mean over the prompt's tokens."""
    device = next(model.parameters()).device
    found = np.empty((len(prompts), 0))
    body = causal_lm(model).base_model  # without the head: nobody reads (tokens, vocabulary) logits
    for chosen in _batches([len(prompt) for prompt in prompts]):
        longest = max(len(prompts[index]) for index in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for place, index in enumerate(chosen):
            ids[place, : len(prompts[index])] = torch.tensor(prompts[index], device=device)
            mask[place, : len(prompts[index])] = 1
        with torch.no_grad():
            states = body(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        middle = states[len(states) // 2].double() * mask.unsqueeze(-1)
        means = (middle.sum(dim=1) / mask.sum(dim=1, keepdim=True)).cpu().numpy()
        if not found.shape[1]:
            found = np.empty((len(prompts), means.shape[1]))
        found[chosen] = means
    return found


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices, short before long, in batches that have at most `DEFAULT_TOKEN_BUDGET` tokens, or one prompt."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and (len(batch) + 1) * lengths[index] > DEFAULT_TOKEN_BUDGET:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
