"""Splits by content: prompts alone decide where a row goes, so no prompt that is trained on is ever held out."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from densepath.data.rows import (
    DataFormat,
    Row,
    Turns,
    canonical_json,
    detect_format,
    has_prompt,
    prompt_of,
    short,
    split_turns,
    turn_text,
)
from densepath.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

R = TypeVar("R", bound=Row)
DEFAULT_SHARES: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
_HASH_BITS = 64  # of the 256, as many as decide a row's place in [0, 1)


def content_hash(row: Row) -> str:
    """SHA-256 of the canonical prompt; the completion never enters.

    hash = sha256(JSON([[role, text], ...])), text in Unicode's NFKC form with every run of whitespace as one space.
    A turn that calls tools enters as [role, text, calls]; `tools` do not enter, so that one question is one content.
    Plain text counts as one user turn, so the same question in standard and in conversational form is one content.
    The prompt is that of `prompt_of`; `text` without one is hashed whole.

    Args:
        row: an example in any format.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: the row is in no known format.

    >>> content_hash({"prompt": "A  b\\n"}) == content_hash({"prompt": [{"role": "user", "content": "A b"}]})
    True
    """
    prompt = prompt_of(row) if has_prompt(row) else str(row["text"])
    turns: Turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    canonical = [
        [turn["role"], normalise_text(turn_text(turn)), *([turn["tool_calls"]] if turn.get("tool_calls") else [])]
        for turn in turns
    ]
    return hashlib.sha256(canonical_json(canonical).encode("ascii")).hexdigest()


def normalise_text(text: str) -> str:
    """Text in Unicode's NFKC form, stripped, with every run of whitespace as one space.

    >>> normalise_text("\\u00a0ﬁne \\u2028 day ")
    'fine day'
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def answered_hashes(row: Row) -> dict[str, Row]:
    """Content hashes of a row's prompt and of every prompt that is answered in it.

    SFT imitates each assistant turn of `messages` and of a completion of several turns: what stands before it is its
    prompt.

    Args:
        row: an example in any format.

    Returns:
        Hash to a row of that prompt.

    Raises:
        DataError: the row is in no known format.
    """
    answers = [] if detect_format(row) is DataFormat.PROMPT else split_turns(row)
    return {content_hash(each): each for each in (row, *answers)}


def split_by_content(rows: Dataset | Sequence[Row], shares: Mapping[str, float] = DEFAULT_SHARES) -> dict[str, Any]:
    """Splits of a data set by the hash of each row's prompt; of a conversation, of the first that some row asks.

    u = hash / 2^64 in [0, 1); a row is in the split whose stretch of the cumulated shares holds u. So a row's split
    depends on its prompt and the shares alone, not on the order or the other rows, and duplicates stay together. SFT
    imitates the earlier turns of a conversation too: one in which the prompt of another row is answered goes where
    that row goes, and only there do the other rows matter. The shares are met on average: a small data set can leave a
    small split empty.

    Args:
        rows: a `datasets.Dataset`, or a sequence of examples.
        shares: name of each split and its share; positive, summing to 1.

    Returns:
        Name to rows, in their order and of the kind that came in (`Dataset` or list).

    Raises:
        ConfigError: shares that are not positive or do not sum to 1.
    """
    if not shares or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9):
        raise ConfigError(f"shares are {dict(shares)}; they must be positive and sum to 1")
    members: dict[str, list[int]] = {name: [] for name in shares}
    asked = {content_hash(row) for row in rows}
    for index, row in enumerate(rows):
        members[_split_of(_opening(row, asked), shares)].append(index)
    if isinstance(rows, Sequence):
        return {name: [rows[index] for index in indices] for name, indices in members.items()}
    return {name: rows.select(indices) for name, indices in members.items()}


def hold_out_by_content(rows: Sequence[R], share: float) -> tuple[list[R], list[R]]:
    """Rows in two parts, of which the second holds the share of contents with the highest hashes; at least one.

    On rows of all contents these are the last splits of `split_by_content`. On rows that went through a split before,
    whose hashes fill one stretch, it holds its share of them, too.

    Args:
        rows: examples; rows of one content, and conversations as `split_by_content` keeps them, stay together.
        share: of the contents, in (0, 1).

    Returns:
        The rows that are left and those that are held out, each in their order.

    Raises:
        DataError: a row is in no known format.
    """
    asked = {content_hash(row) for row in rows}
    openings = [_opening(row, asked) for row in rows]
    contents = sorted(set(openings))
    highest = set(contents[-math.ceil(share * len(contents)) :])
    parts: tuple[list[R], list[R]] = ([], [])
    for row, opening in zip(rows, openings, strict=True):
        parts[opening in highest].append(row)
    return parts


def check_disjoint(
    splits: Mapping[str, Dataset | Sequence[Row]],
    every_turn: Collection[str] = (),
    where: Callable[[str, Row], str] | None = None,
) -> None:
    """Raise when the prompt of a row is answered in another split; duplicates within one split are allowed.

    Args:
        splits: name to rows, for example the training and the evaluation prompts.
        every_turn: names of the splits of which the prompts of earlier answers count too, as where SFT trains on them;
            that two conversations have no more than earlier prompts in common is allowed.
        where: says the place of a row of a split, for rows that are no longer in the order of their source; None
            counts them.

    Raises:
        DataError: names the two rows (by split and number, 1-based, or by `where`) and the prompt's beginning.
    """
    asked: dict[str, dict[str, int]] = {}
    for name, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            asked.setdefault(content_hash(row), {}).setdefault(name, number)
    for name, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            for digest, each in (answered_hashes(row) if name in every_turn else {content_hash(row): row}).items():
                for other, its in asked.get(digest, {}).items():
                    if other != name:
                        one, two = (
                            f"{split} row {at}"
                            if where is None
                            else f"{where(split, splits[split][at - 1])} ({split})"
                            for split, at in ((name, number), (other, its))
                        )
                        raise DataError(
                            f"{one} and {two} have the same prompt ({_preview(each)}); "
                            "remove one, or split with split_by_content"
                        )


def _split_of(digest: str, shares: Mapping[str, float]) -> str:
    place = int(digest[: _HASH_BITS // 4], 16) / 2**_HASH_BITS
    upper = 0.0
    for name, share in shares.items():
        upper += share
        if place < upper:
            return name
    return name  # the sum of the shares fell short of 1 by rounding


def _opening(row: Row, asked: Collection[str]) -> str:
    """Hash of the first prompt in a row's own that some row asks: conversations that share one share this one."""
    prompt = prompt_of(row) if has_prompt(row) else ""
    turns: Turns = [] if isinstance(prompt, str) else prompt
    hashes = (content_hash({"prompt": turns[:k]}) for k, turn in enumerate(turns) if turn["role"] == "assistant")
    return next((each for each in hashes if each in asked), content_hash(row))


def _preview(row: Row) -> str:
    prompt = prompt_of(row) if has_prompt(row) else str(row["text"])
    return repr(short(prompt if isinstance(prompt, str) else turn_text(prompt[-1])))
