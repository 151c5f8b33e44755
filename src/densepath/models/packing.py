"""Token sequences -> batches without waste: what sequences have in common at their beginning is stored once.

Scoring reads only the log-probabilities of completion tokens. Sequences are sorted by their ids, so that those which
begin alike stand side by side; each then holds the tokens that it adds to the one before (a *segment*), and names the
columns that these continue (their *context*). So a prompt of several completions is there once, whatever its length;
so are the turns before a turn, and a beginning that all prompts share. The last prompt token is repeated in front of
every completion, because it predicts a different first token in each.

Of several flat rows the first alone holds a beginning that all prompts have, if it is kept: its tokens stand at
columns -n to -1 of the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED_LABEL = -100
ROW_TOKENS = 256
"""Width that rows under a mask are filled to: attention costs its square, and wider rows measured slower."""
Spans = tuple[tuple[int, int], ...]
"""(first column, column behind the last) of runs of tokens, in the order of their positions."""


class Layout(IntEnum):
    """How sequences share a batch; each does what the one before does, and more."""

    ALONE = 0
    """Each sequence is a batch of its own."""
    PADDED = 1
    """Each is a row, padded on the right."""
    PACKED = 2
    """Several share a row under a mask; rows of about `ROW_TOKENS` tokens are padded to the widest."""
    FLAT = 3
    """All are one row without padding, and attention is computed segment by segment (`models.flat_attention`)."""


class Segment(NamedTuple):
    """A run of tokens in a row, and what it continues.

    Attributes:
        start: its first column.
        stop: the column behind its last.
        context: columns of the tokens before it, which it sees beside its own.
    """

    start: int
    stop: int
    context: Spans


@dataclass(frozen=True)
class PackedBatch:
    """What a causal LM takes, and where in its output each completion token's prediction stands.

    Attributes:
        input_ids: (rows, width) int64.
        position_ids: (rows, width) int64, position of each token in its own sequence.
        attention_mask: packed, (rows, 1, width, width) bool, True = may be attended to; else (rows, width) int64, 1
            where there is a token.
        labels: (rows, width) int64, the token that each position predicts (already shifted), or -100.
        segments: of a flat row; of any other layout none.
        sequences: index of each packed sequence in the caller's order.
        rows: row of each packed sequence.
        columns: column at which the first completion token of each packed sequence is predicted.
        lengths: completion tokens of each packed sequence.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    segments: tuple[Segment, ...]
    sequences: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    lengths: tuple[int, ...]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **moved)

    def predicting(self) -> tuple[Tensor, Tensor]:
        """Row and column indices of all positions that predict a completion token, sequence by sequence."""
        rows = torch.tensor(self.rows).repeat_interleave(torch.tensor(self.lengths))
        columns = torch.cat(
            [torch.arange(column, column + length) for column, length in zip(self.columns, self.lengths, strict=True)]
        )
        return rows, columns


@dataclass
class _Row:
    """A row while it is filled; `run` is the sequence that was added last, `path` its columns."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    run: list[int] = field(default_factory=list)
    path: Spans = ()

    def shared(self, prompt: Sequence[int]) -> int:
        """Tokens with which a prompt begins as the sequence before does; its last one is always left over."""
        count = 0
        for one, other in zip(self.run, prompt[:-1], strict=False):
            if one != other:
                break
            count += 1
        return count

    def add(self, index: int, prompt: Sequence[int], completion: Sequence[int], shared: int) -> None:
        """Append what a sequence adds to the first `shared` tokens of the one before."""
        start, goes_on = len(self.ids), bool(self.segments) and shared == len(self.run)
        self.run = [*prompt, *completion[:-1]]  # nothing is predicted from its last token
        self.ids += self.run[shared:]
        self.positions += range(shared, len(self.run))
        self.labels += [IGNORED_LABEL] * (len(prompt) - 1 - shared) + [*completion]
        if goes_on:
            start, _, context = self.segments.pop()
        else:
            context = cut(self.path, 0, shared)
        self.segments.append(Segment(start, len(self.ids), context))
        self.path = (*context, (start, len(self.ids)))
        self.sequences.append(index)
        self.columns.append(len(self.ids) - len(completion))
        self.lengths.append(len(completion))


def common_beginning(prompts: Collection[tuple[int, ...]]) -> list[int]:
    """Ids that begin every prompt; at least one id of each is left over.

    >>> common_beginning([(7, 8, 1), (7, 8), (7, 8, 2, 5)])
    [7]
    """
    first, last = min(prompts, default=()), max(prompts, default=())  # in order these differ soonest
    most = min(map(len, prompts), default=1) - 1
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return [one for one, _ in same][:most]


def cut(spans: Spans, start: int, stop: int) -> Spans:
    """The columns of the tokens from `start` up to `stop`, counted along the spans."""
    found, at = [], 0
    for first, last in spans:
        begin, end = max(first, first + start - at), min(last, first + stop - at)
        if begin < end:
            found.append((begin, end))
        at += last - first
    return tuple(found)


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    layout: Layout,
    *,
    token_budget: int | None = None,
    beginning: Sequence[int] = (),
) -> Iterator[PackedBatch]:
    """Pack sequences into batches of at most `token_budget` tokens.

    Args:
        prompts: ids of each prompt, at least one token each.
        completions: ids of each completion; an empty one is left out.
        layout: how sequences may share a batch.
        token_budget: most tokens (padding included) of one batch; one batch holds everything if None. A longer
            single sequence makes a batch of its own, and with what a flat row begins as the one before does it has
            more: else a long prompt would be computed again for every few of its completions.
        beginning: ids with which every prompt begins, and that the caller keeps from the first flat row on.

    Yields:
        Batches that together hold each non-empty completion once, widest rows first; where a beginning is kept, behind
        the one that holds it.

    Raises:
        ValueError: a prompt is empty, or there are not as many prompts as completions.
    """
    flat = layout is Layout.FLAT
    most = token_budget if flat else ROW_TOKENS if layout is Layout.PACKED else 0
    beginning = beginning if flat else ()
    rows = list(_filled(prompts, completions, most, flat=flat, beginning=beginning))
    first = rows[:1] if beginning else []
    rows = [*first, *sorted(rows[len(first) :], key=lambda row: -len(row.ids))]
    if flat or layout is Layout.ALONE:
        token_budget = 0
    batch: list[_Row] = []
    for row in rows:
        if batch and token_budget is not None and (len(batch) + 1) * len(batch[0].ids) > token_budget:
            yield _build(batch, layout)
            batch = []
        batch.append(row)
    if batch:
        yield _build(batch, layout)


def _filled(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    most: int | None,
    *,
    flat: bool,
    beginning: Sequence[int],
) -> Iterator[_Row]:
    """Rows of at most `most` tokens; of one sequence with the turns that go on from it if 0.

    All but the first continue a `beginning`, which they do not hold.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"sequence {index}: the prompt is empty, so nothing predicts the first token")
    row, begun = _Row(), 0
    kept = [index for index, completion in enumerate(completions) if completion]
    for index in sorted(kept, key=lambda index: [*prompts[index], *completions[index]]):
        shared = row.shared(prompts[index])
        more = len(prompts[index]) + len(completions[index]) - 1 - shared
        fits = most is None or len(row.ids) + more <= most + begun or (not most and shared == len(row.run))
        if row.ids and not fits:
            yield row
            begun, shared = max(0, shared - len(beginning)) if flat else 0, len(beginning)
            row = _Row(run=list(beginning), path=((-shared, 0),) if shared else ())
        row.add(index, prompts[index], completions[index], shared)
    if row.ids:
        yield row


def _build(rows: Sequence[_Row], layout: Layout) -> PackedBatch:
    shape = len(rows), len(rows[0].ids)
    # NumPy takes a slice from a list several times faster than torch
    input_ids, position_ids, present = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    for r, row in enumerate(rows):
        at = slice(0, len(row.ids))
        input_ids[r, at], position_ids[r, at], labels[r, at], present[r, at] = row.ids, row.positions, row.labels, 1
    return PackedBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        _masks(rows, shape[1]) if layout is Layout.PACKED else torch.from_numpy(present),
        torch.from_numpy(labels),
        tuple(rows[0].segments) if layout is Layout.FLAT else (),
        tuple(index for row in rows for index in row.sequences),
        tuple(r for r, row in enumerate(rows) for _ in row.sequences),
        tuple(column for row in rows for column in row.columns),
        tuple(length for row in rows for length in row.lengths),
    )


def _masks(rows: Sequence[_Row], width: int) -> Tensor:
    """(rows, 1, width, width) bool: a segment sees its context, and itself causally; padding sees itself."""
    # softmax over nothing is NaN
    masks = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    for mask, row in zip(masks, rows, strict=True):
        for start, stop, context in row.segments:
            mask[start:stop, start:stop] = causal[: stop - start, : stop - start]
            for first, last in context:
                mask[start:stop, first:last] = True
    return masks.unsqueeze(1)
