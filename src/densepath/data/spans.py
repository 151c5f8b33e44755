"""Token ids back to text, without breaking a character: runs of tokens, and each token's place in the text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, NamedTuple

from densepath.data.tokenizer_calls import as_ints, decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what an incomplete UTF-8 sequence decodes to, and a character of its own
_FOLLOWING = 3  # bytes that complete a character after its first: no token has less than one
_NEAR = 8  # tokens of two characters, which is as far as the end of a text depends on what stands before
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # name of a token for one byte of what has no token (SentencePiece)


def decode_spans(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """Text of each shortest run of tokens that decodes to whole characters.

    A character can be split over several byte-level tokens; a run is extended until no token that follows can change
    how its text ends. The texts joined equal the decoding of all tokens, the runs joined equal `token_ids`. The work
    grows with the number of tokens, whatever they are.

    Args:
        token_ids: ids to decode, special tokens included.
        tokenizer: a transformers tokenizer.

    Returns:
        (text, run of ids) in order; empty for no tokens.
    """
    ids = as_ints(token_ids)
    whole = decode(ids, tokenizer)
    spans: list[tuple[str, list[int]]] = []
    context = start = 0  # the run before is decoded along, as some decoders treat the first token apart
    for end in range(1, len(ids) + 1):
        near = max(context, end - _NEAR)
        text = decode(ids[near:end], tokenizer)
        if text.endswith(_REPLACEMENT) and not _is_settled(text, ids, near, end, tokenizer):
            continue
        text = text if near == context else decode(ids[context:end], tokenizer)
        known = decode(ids[context:start], tokenizer)
        spans.append((text[len(known) :], ids[start:end]))
        context, start = start, end
    for found in (spans, _spans_of_bytes(ids, tokenizer)):
        if "".join(text for text, _ in found) == whole:
            return found
    return [(whole, ids)]  # a decoder that rewrites what it wrote before: no finer runs exist


def _spans_of_bytes(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """Runs where each token stands alone, but a stretch of byte tokens is UTF-8, or U+FFFD for each of its bytes."""
    names = enumerate(map(str, tokenizer.convert_ids_to_tokens(ids)))
    spans: list[tuple[str, list[int]]] = []
    context: list[int] = []
    for _, stretch in groupby(names, lambda item: -1 if _BYTE.fullmatch(item[1]) else item[0]):
        run = [ids[place] for place, _ in stretch]
        text = decode([*context, *run], tokenizer)[len(decode(context, tokenizer)) :]
        utf8, single, one = [len(character.encode()) for character in text], [1] * len(text), [len(run)]
        sizes = next(each for each in (utf8, single, one) if sum(each) == len(run))
        rest = iter(run)
        pieces = [text] if sizes is one else text
        spans += [(piece, list(islice(rest, size))) for piece, size in zip(pieces, sizes, strict=True)]
        context = run
    return spans


def _is_settled(text: str, ids: list[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `text`, that of ids[start:end], stays as it is whatever follows: each token there adds to it."""
    last = min(end + _FOLLOWING, len(ids))
    more = (decode(ids[start:later], tokenizer) for later in range(end + 1, last + 1))
    return all(len(longer) > len(text) and longer.startswith(text) for longer in more)


def token_offsets(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """Text of a completion, and where in it each token stands.

    Args:
        token_ids: ids of the completion.
        tokenizer: a transformers tokenizer.

    Returns:
        The text without a final EOS, and (start, end) in characters for each token. Tokens that share a character
        share its range; a final EOS has an empty range at the end.
    """
    ids = as_ints(token_ids)
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    text = ""
    offsets: list[tuple[int, int]] = []
    for piece, run in decode_spans(ids[:-1] if ended else ids, tokenizer):
        offsets += [(len(text), len(text) + len(piece))] * len(run)
        text += piece
    return text, [*offsets, (len(text), len(text))] if ended else offsets


def ending(token_ids: Sequence[int], eos_token_ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Index of the token that ends a completion: the first EOS behind which nothing but EOS and white space stands.

    Sampling stops there. Some templates render more: the end of a turn, a line, and the EOS of the conversation.

    Args:
        token_ids: ids of the completion.
        eos_token_ids: ids that end one.
        tokenizer: a transformers tokenizer.

    Returns:
        The number of tokens where no EOS ends it.
    """
    ids, ends = as_ints(token_ids), set(eos_token_ids)
    found = place = len(ids)
    while place and (ids[place - 1] in ends or not decode(ids[place - 1 : place], tokenizer).strip()):
        place -= 1
        if ids[place] in ends:
            found = place
    return found


class ReadTokens(NamedTuple):
    """A completion as text: its ids, the text of each token, and where in the text each stands (`token_offsets`)."""

    text: str
    token_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


def read_tokens(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> ReadTokens:
    """Text of a completion and of each of its tokens; a final EOS has its name.

    Args:
        token_ids: ids of the completion.
        tokenizer: a transformers tokenizer.
    """
    ids = as_ints(token_ids)
    text, offsets = token_offsets(ids, tokenizer)
    tokens = [text[start:end] for start, end in offsets]
    if ids and ids[-1] == tokenizer.eos_token_id:
        tokens[-1] = str(tokenizer.eos_token)
    return ReadTokens(text, ids, tokens, offsets)
