"""Data rows -> columns with their dense reward, token by token; rows that cannot be scored are told apart.

Each turn has the layout of `records.completion.ScoredCompletion`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from densepath.data.context import check_context
from densepath.data.encode import Encoded, encode_pairs
from densepath.data.formats import check_row
from densepath.data.rows import Row
from densepath.errors import DataError, ModelError, NumericalError
from densepath.models.compat import eos_token_ids
from densepath.rewards.dense import DenseReward
from densepath.rewards.scores import DenseScores

SCORE_COLUMNS = ("reward", "reward_per_token", "num_tokens", "turns")
"""What is added to a row: reward summed over its turns (nats), per token, tokens, and each turn token by token."""


class RowScorer:
    """Scores rows of any TRL format with one reward.

    Args:
        reward: the reward.
        tokenizer: that of its models.
        logprobs: also give log pi_SFT and log pi_ref of each token.
    """

    def __init__(self, reward: DenseReward, tokenizer: Any, *, logprobs: bool = False) -> None:
        self.reward, self.tokenizer, self.logprobs = reward, tokenizer, logprobs
        self._ends = eos_token_ids(reward.sft.model, tokenizer)

    def encode(self, row: Row) -> list[Encoded]:
        """Pairs to score, one for each assistant turn that is an action.

        Raises:
            DataError: a field that is missing or empty, turns that the chat template refuses, a column of that name,
                text that is no Unicode, or more tokens than the context holds.
            ModelError: the tokenizer or its chat template do not serve.
        """
        if row.get("chosen") is not None and row.get("rejected") is not None and row.get("completion") is None:
            raise DataError(
                'a preference pair: densepath reward-eval scores both answers; to score one, rename "chosen" or '
                '"rejected" to "completion"'
            )
        check_row(row, "demonstrations")
        for name in SCORE_COLUMNS:
            if name in row:
                raise DataError(f'there is a column "{name}" already; rename it, or leave it out with remove_columns')
        pairs = encode_pairs(row, self.tokenizer)
        check_context(max(len(pair.prompt_ids) + len(pair.completion_ids) for pair in pairs), self.reward.context)
        return pairs

    def score(
        self, rows: Sequence[Row], on_progress: Callable[[float, int], None] | None = None
    ) -> list[dict[str, Any] | DataError]:
        """`SCORE_COLUMNS` of each row, or why it has none.

        Args:
            rows: rows to score together: sorted by length and packed; the result does not depend on the company.
            on_progress: called with the share of the work that a forward pass finished, and its tokens.
        """
        found: list[dict[str, Any] | DataError] = []
        pairs: dict[int, list[Encoded]] = {}
        for index, row in enumerate(rows):
            found.append({})
            try:
                pairs[index] = self.encode(row)
            except (DataError, ModelError) as error:
                found[index] = DataError(str(error))
        report = _share(pairs, self.reward.passes, on_progress)
        scores, bad = self._finite_scores(pairs, report)
        at = 0
        for index, turns in pairs.items():
            if index in bad:
                found[index] = bad[index]
            else:
                found[index] = self._columns(turns, scores, at)
                at += len(turns)
        return found

    def _finite_scores(
        self, pairs: dict[int, list[Encoded]], report: Callable[[int], None] | None
    ) -> tuple[DenseScores, dict[int, DataError]]:
        """Scores of the rows whose log-probabilities are finite, and the others."""
        bad: dict[int, DataError] = {}
        while True:
            kept = {index: turns for index, turns in pairs.items() if index not in bad}
            try:
                return self._score(list(kept.values()), report), bad
            except NumericalError as error:
                # A row shares its forward pass with others, which its NaN may reach: each is tried alone.
                owners = [index for index, turns in kept.items() for _ in turns]
                before = len(bad)
                for index in dict.fromkeys(owners[sequence] for sequence in error.sequences):
                    try:
                        self._score([kept[index]], None)
                    except NumericalError as alone:
                        bad[index] = DataError(f"not finite: {alone}")
                if len(bad) == before:
                    raise

    def _score(self, pairs: list[list[Encoded]], report: Callable[[int], None] | None) -> DenseScores:
        flat = [turn for turns in pairs for turn in turns]
        return self.reward.score_ids(
            [turn.prompt_ids for turn in flat],
            [turn.completion_ids for turn in flat],
            eos_token_ids=self._ends,
            on_progress=report,
        )

    def _columns(self, turns: list[Encoded], scores: DenseScores, at: int) -> dict[str, Any]:
        found = [
            scores.completion(index, self.tokenizer, logprobs=self.logprobs) for index in range(at, at + len(turns))
        ]
        total = math.fsum(completion.sum for completion in found)
        count = sum(len(completion.rewards) for completion in found)
        records = [completion.to_json() for completion in found]
        return {"reward": total, "reward_per_token": total / count, "num_tokens": count, "turns": records}


def _share(
    pairs: dict[int, list[Encoded]], passes: int, on_progress: Callable[[float, int], None] | None
) -> Callable[[int], None] | None:
    """`score_ids` counts sequences, once for each model; here they become a share of the whole, and tokens."""
    turns = [turn for found in pairs.values() for turn in found]
    tokens = sum(len(turn.prompt_ids) + len(turn.completion_ids) for turn in turns)
    if on_progress is None or not turns:
        return None
    report, total = on_progress, len(turns) * passes
    done = 0

    def count(sequences: int) -> None:
        nonlocal done
        before, done = done, min(done + sequences, total)  # rows that are tried again count once
        report((done - before) / total, done * tokens // total - before * tokens // total)

    return count
