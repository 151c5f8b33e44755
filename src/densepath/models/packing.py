"""Token sequences -> one rectangular batch without waste: sequences share rows, and prompts are stored once.

Scoring reads only the log-probabilities of completion tokens. A row therefore holds, for each group of
completions with the same prompt, the prompt once and then one branch a completion; the attention mask lets a
branch see its prompt and itself, and position ids say where each token stood. The last prompt token is
repeated in front of every branch, because it predicts a different first token in each. Turns of one conversation,
given one after the other, are one branch: each prompt begins with the turn before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORED_LABEL = -100
ROW_TOKENS = 256
"""Width that rows are filled to: attention over a row costs its square, and wider rows measured slower."""


@dataclass(frozen=True)
class PackedBatch:
    """What a causal LM takes, and where in its output each completion token's prediction stands.

    Attributes:
        input_ids: (rows, width) int64.
        position_ids: (rows, width) int64, position of each token in its own sequence.
        attention_mask: (rows, 1, width, width) bool, True = may be attended to. None when each row holds one
            sequence: causal attention alone is right then, and no mask grows with the square of the width. With
            `padded`, (rows, width) int64.
        labels: (rows, width) int64, the token that each position predicts (already shifted), or -100.
        sequences: index of each packed sequence in the caller's order.
        rows: row of each packed sequence.
        columns: column at which the first completion token of each packed sequence is predicted.
        lengths: completion tokens of each packed sequence.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor
    sequences: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    lengths: tuple[int, ...]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            None if self.attention_mask is None else self.attention_mask.to(device),
            self.labels.to(device),
            self.sequences,
            self.rows,
            self.columns,
            self.lengths,
        )

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut per-position values into one (completion tokens,) tensor a packed sequence, in `sequences` order.

        Args:
            values: (rows, width), any dtype.
        """
        return [
            values[row, column : column + length]
            for row, column, length in zip(self.rows, self.columns, self.lengths, strict=True)
        ]

    def predicting(self) -> tuple[Tensor, Tensor]:
        """Row and column indices of all positions that predict a completion token, sequence by sequence."""
        rows = torch.tensor(self.rows).repeat_interleave(torch.tensor(self.lengths))
        columns = torch.cat(
            [torch.arange(column, column + length) for column, length in zip(self.columns, self.lengths, strict=True)]
        )
        return rows, columns


@dataclass(frozen=True)
class _Group:
    """Sequences that are packed together behind one prompt.

    A branch is one sequence, or several of which each prompt begins with the one before (turns of a conversation),
    as one run of tokens. Branches index the caller's sequences.
    """

    prompt: Sequence[int]
    branches: tuple[tuple[int, ...], ...]
    width: int


def _branches(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"sequence {index}: the prompt is empty, so nothing predicts the first token")
        if not completions[index]:
            continue
        before = found[-1][-1] if found else -1
        if before == index - 1 >= 0 and _begins_with(prompt, prompts[before], completions[before]):
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _begins_with(ids: Sequence[int], prompt: Sequence[int], completion: Sequence[int]) -> bool:
    length = len(prompt) + len(completion)
    return len(ids) >= length and [*ids[:length]] == [*prompt, *completion]


def _group(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    row_tokens: int,
    share_prompts: bool,
) -> list[_Group]:
    by_prompt: dict[object, list[tuple[int, ...]]] = {}
    for branch in map(tuple, _branches(prompts, completions)):
        by_prompt.setdefault(tuple(prompts[branch[0]]) if share_prompts else branch, []).append(branch)
    groups: list[_Group] = []
    for branches in by_prompt.values():
        prompt = prompts[branches[0][0]]
        shared = len(prompt) - 1
        chosen: list[tuple[int, ...]] = []
        width = shared
        for branch in branches:
            length = len(prompts[branch[-1]]) + len(completions[branch[-1]]) - 1 - shared
            if chosen and width + length > row_tokens:
                groups.append(_Group(prompt, tuple(chosen), width))
                chosen, width = [], shared
            chosen.append(branch)
            width += length
        groups.append(_Group(prompt, tuple(chosen), width))
    return groups


def _fill_rows(groups: list[_Group], row_tokens: int, per_row: bool) -> list[list[_Group]]:
    """First-fit decreasing: each group goes into the first row that has room."""
    rows: list[list[_Group]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda g: (-g.width, g.branches)):
        place = next((i for i, free in enumerate(room) if free >= group.width), None)
        if place is None or per_row:
            rows.append([group])
            room.append(row_tokens - group.width)
        else:
            rows[place].append(group)
            room[place] -= group.width
    return rows


def _build(
    rows: list[list[_Group]],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_token_id: int,
    padded: bool,
) -> PackedBatch:
    width = max(map(_width, rows))
    shape = (len(rows), width)
    # NumPy takes a slice from a list several times faster than torch
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    group_of = np.full(shape, -1, dtype=np.int64)
    branch_of = np.zeros(shape, dtype=np.int64)
    sequences, row_of, columns, lengths = [], [], [], []
    for r, row in enumerate(rows):
        at = 0
        for g, group in enumerate(row):
            shared = len(group.prompt) - 1
            input_ids[r, at : at + shared] = group.prompt[:-1]
            position_ids[r, at : at + shared] = range(shared)
            group_of[r, at : at + group.width] = g
            at += shared
            for number, branch in enumerate(group.branches, start=1):
                run = [*prompts[branch[-1]], *completions[branch[-1]]][shared:-1]
                stop = at + len(run)
                input_ids[r, at:stop] = run
                position_ids[r, at:stop] = range(shared, shared + len(run))
                branch_of[r, at:stop] = number
                for index in branch:
                    column = at + len(prompts[index]) - 1 - shared
                    completion = completions[index]
                    labels[r, column : column + len(completion)] = completion
                    sequences.append(index)
                    row_of.append(r)
                    columns.append(column)
                    lengths.append(len(completion))
                at = stop
    groups, branches = torch.from_numpy(group_of), torch.from_numpy(branch_of)
    positions = torch.from_numpy(position_ids)
    attention_mask: Tensor | None
    if padded:
        attention_mask = (groups >= 0).long()
    elif _alone(rows):
        # Its positions go on, since transformers takes a jump for a new sequence.
        positions = torch.arange(width).repeat(len(rows), 1)
        attention_mask = None
    else:
        same_group = groups.unsqueeze(2) == groups.unsqueeze(1)
        visible = (branches.unsqueeze(1) == 0) | (branches.unsqueeze(2) == branches.unsqueeze(1))
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        # Padding forms a group of its own (-1), so that no row of the mask is empty: softmax over nothing is NaN.
        attention_mask = (same_group & visible & causal).unsqueeze(1)
    return PackedBatch(
        torch.from_numpy(input_ids),
        positions,
        attention_mask,
        torch.from_numpy(labels),
        tuple(sequences),
        tuple(row_of),
        tuple(columns),
        tuple(lengths),
    )


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    token_budget: int | None = None,
    row_tokens: int = ROW_TOKENS,
    pad_token_id: int = 0,
    padded: bool = False,
) -> Iterator[PackedBatch]:
    """Pack sequences into batches of at most `token_budget` tokens.

    Args:
        prompts: ids of each prompt, at least one token each.
        completions: ids of each completion; an empty one is left out.
        token_budget: most tokens (padding included) of one batch; one batch holds everything if None. A longer
            single sequence makes a batch of its own.
        row_tokens: width that rows are filled to; wider sequences get wider rows.
        pad_token_id: any valid id; no result depends on it.
        padded: one sequence a row, right-padded, with a 2-D mask: for models that do not take a 4-D mask.

    Yields:
        Batches that together hold each non-empty completion once, widest rows first.
    """
    for rows in _row_batches(prompts, completions, token_budget, row_tokens, padded):
        yield _build(rows, prompts, completions, pad_token_id, padded)


def _alone(rows: list[list[_Group]]) -> bool:
    """Whether each row is one sequence: causal attention needs no mask then, and padding stands behind it."""
    return all(len(row) == 1 and len(row[0].branches) == 1 for row in rows)


def _width(row: list[_Group]) -> int:
    return sum(group.width for group in row)


def _row_batches(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    token_budget: int | None,
    row_tokens: int,
    padded: bool,
) -> Iterator[list[list[_Group]]]:
    """Rows of groups within the budget, widest first."""
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
    groups = _group(prompts, completions, row_tokens, share_prompts=not padded)
    rows = _fill_rows(groups, row_tokens, per_row=padded)
    rows.sort(key=lambda row: -_width(row))
    batch: list[list[_Group]] = []
    for row in rows:
        width = _width(batch[0] if batch else row)
        if batch and token_budget is not None and (len(batch) + 1) * width > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
