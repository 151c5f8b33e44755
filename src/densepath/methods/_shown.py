"""Training demonstrations as they are shown: each with the reward of its tokens."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from torch import Tensor

from densepath.data.spans import read_tokens
from densepath.methods import Stage
from densepath.methods._behaviours import Corpus
from densepath.models.load import load_frozen
from densepath.records.completion import ScoredCompletion, ScoredRow, asked_text, completion_of
from densepath.rewards.frozen import FrozenPolicy


def shown_rows(stage: Stage, corpus: Corpus, indices: Sequence[int]) -> tuple[ScoredRow, ...]:
    """Rows with `log pi_SFT - log pi_0` of every token, nats.

    They are scored again, since what sorted the demonstrations keeps sums alone. Like the samples of a report these
    passes are for show, and no budget counts them.

    Args:
        stage: whose models score.
        corpus: the demonstrations.
        indices: rows of `corpus.train`.
    """
    if not indices:
        return ()
    chosen = set(indices)
    pairs = [(index, pair) for index, pair in corpus.train.pairs if index in chosen]

    def logprobs(path: str) -> list[Tensor]:
        policy = FrozenPolicy(load_frozen(stage.arguments, path))
        scores = policy.score([pair.prompt_ids for _, pair in pairs], [pair.completion_ids for _, pair in pairs])
        gc.collect()
        return scores.logprobs

    turns: dict[int, list[ScoredCompletion]] = {index: [] for index in indices}
    both = zip(pairs, logprobs(str(stage.sft.model)), logprobs(stage.sft.base), strict=True)
    for (index, pair), sft, base in both:
        turns[index].append(
            completion_of(
                read_tokens(pair.completion_ids, corpus.tokenizer),
                (sft.double() - base.double()).tolist(),
                sft_logprobs=sft.tolist(),
                ref_logprobs=base.tolist(),
            )
        )
    return tuple(_row(corpus, index, turns[index]) for index in indices)


def _row(corpus: Corpus, index: int, turns: Sequence[ScoredCompletion]) -> ScoredRow:
    row = corpus.train.rows[index]
    name, category = row.get("id"), row.get("family") or row.get("category")
    return ScoredRow(
        number=corpus.train.numbers[index] + 1,
        id=None if name is None else str(name),
        prompt=asked_text(row),
        category=None if category is None else str(category),
        turns=tuple(turns),
    )
