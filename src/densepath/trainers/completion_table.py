"""Per-token columns beside TRL's table of completions: what each token said, earned and was pushed by."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from accelerate.utils import gather_object
from torch import Tensor

from densepath.data.spans import decode_spans
from densepath.io import atomic_path
from densepath.trainers.rollout import Credited

COLUMNS = {
    "token_ids": pa.list_(pa.int32()),
    "token_texts": pa.list_(pa.string()),
    "token_rewards": pa.list_(pa.float32()),
    "token_advantages": pa.list_(pa.float32()),
}
"""One list a completion, all of one length. The texts joined are the completion, special tokens included."""


class TokenTable:
    """The last completions, token by token, to be written beside TRL's columns: an observer of generation batches.

    Args:
        size: completions kept; TRL keeps those of the last generation batch.
        tokenizer: of the policy.
    """

    def __init__(self, size: int, tokenizer: Any) -> None:
        self.rows: deque[dict[str, Any]] = deque(maxlen=size)
        self.tokenizer = tokenizer

    def observe(self, credited: Credited) -> None:
        """Add the completions of all processes, in TRL's order."""
        ids, advantages = credited.scored.sampled.completion_ids, credited.credit.advantages
        self.rows.extend(gather_object(token_rows(self.tokenizer, ids, credited.batch.rewards, advantages)))

    def add_to(self, path: Path) -> None:
        """Rewrite TRL's Parquet file with the columns of `COLUMNS` added, atomically."""
        table = pq.read_table(path)
        for name, kind in COLUMNS.items():
            table = table.append_column(name, pa.array([row[name] for row in self.rows], type=kind))
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)


def token_rows(
    tokenizer: Any, completion_ids: Sequence[Sequence[int]], rewards: Tensor, advantages: Tensor
) -> list[dict[str, Any]]:
    """One row of `COLUMNS` for each completion.

    Args:
        tokenizer: of the policy.
        completion_ids: ids of each completion, EOS included.
        rewards: (completions, width) float: what each token earned.
        advantages: (completions, width) float: what multiplied its score function.
    """
    rows = []
    for index, ids in enumerate(completion_ids):
        rows.append(
            {
                "token_ids": list(ids),
                "token_texts": token_texts(tokenizer, ids),
                "token_rewards": rewards[index, : len(ids)].tolist(),
                "token_advantages": advantages[index, : len(ids)].tolist(),
            }
        )
    return rows


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A text for each token, which joined are the decoded completion.

    A character that several tokens share stands at the first of them; the others are empty.
    """
    texts: list[str] = []
    for text, run in decode_spans(ids, tokenizer):
        texts += [text, *[""] * (len(run) - 1)]
    return texts
