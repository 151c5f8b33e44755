"""Two token sequences side by side: the longest common subsequence, as edit operations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

MAX_CELLS = 25_000_000
"""Largest table of the exact alignment (50 MB); beyond it the part that differs is one replacement."""


class Edit(NamedTuple):
    """`a[a_start:a_end]` stands against `b[b_start:b_end]`; `tag` is equal, replace, delete or insert."""

    tag: str
    a_start: int
    a_end: int
    b_start: int
    b_end: int


def align(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[Edit]:
    """Edits that turn `a` into `b` with as many equal items as any alignment has, in difflib's form.

        L[i, j] = L[i-1, j-1] + 1              where a_i = b_j
                  max(L[i-1, j], L[i, j-1])    elsewhere

    difflib itself looks for long runs first, keeps fewer items, and takes cubic time on repetitive text. Here time
    and memory are one table of the parts between the common beginning and the common end.

    Args:
        a: items, e.g. (text, token ids).
        b: likewise.

    Returns:
        Edits in order that cover both sequences; empty for two empty ones.

    >>> align("abxd", "abcd")
    [Edit(tag='equal', a_start=0, a_end=2, b_start=0, b_end=2), \
Edit(tag='replace', a_start=2, a_end=3, b_start=2, b_end=3), \
Edit(tag='equal', a_start=3, a_end=4, b_start=3, b_end=4)]
    """
    shorter = min(len(a), len(b))
    head = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    tail = next((i for i in range(shorter - head) if a[-1 - i] != b[-1 - i]), shorter - head)
    middle = _matches(a[head : len(a) - tail], b[head : len(b) - tail])
    pairs = [(i, i) for i in range(head)]
    pairs += [(head + i, head + j) for i, j in middle]
    pairs += [(len(a) - tail + i, len(b) - tail + i) for i in range(tail)]
    return _edits(pairs, len(a), len(b))


def _matches(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Index pairs of a longest common subsequence."""
    if not a or not b or (len(a) + 1) * (len(b) + 1) > MAX_CELLS:
        return []
    codes: dict[Hashable, int] = {}
    left = np.array([codes.setdefault(item, len(codes)) for item in a])
    right = np.array([codes.setdefault(item, len(codes)) for item in b])
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=np.uint16 if min(len(a), len(b)) < 65_536 else np.uint32)
    for i in range(1, len(a) + 1):
        diagonal = table[i - 1, :-1] + (right == left[i - 1])
        # L[i, j-1] is the largest of what stands before j in its row.
        table[i, 1:] = np.maximum.accumulate(np.maximum(table[i - 1, 1:], diagonal))
    pairs = []
    i, j = len(a), len(b)
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif table[i - 1, j] >= table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _edits(pairs: list[tuple[int, int]], a_size: int, b_size: int) -> list[Edit]:
    edits: list[Edit] = []
    a_at = b_at = 0
    for i, j in [*pairs, (a_size, b_size)]:
        if a_at < i or b_at < j:
            tag = "replace" if a_at < i and b_at < j else "delete" if a_at < i else "insert"
            edits.append(Edit(tag, a_at, i, b_at, j))
        if i < a_size and j < b_size:
            last = edits[-1] if edits else None
            if last is not None and last.tag == "equal":
                edits[-1] = last._replace(a_end=i + 1, b_end=j + 1)
            else:
                edits.append(Edit("equal", i, i + 1, j, j + 1))
        a_at, b_at = i + 1, j + 1
    return edits
