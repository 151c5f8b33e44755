"""The few calls of a transformers tokenizer that `encode.py` is made of, with the mistakes that users make named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from densepath.data.rows import Turns, short
from densepath.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a piece of text, without the special tokens that a tokenizer puts around a whole one."""
    return as_ints(tokenizer(text=text, add_special_tokens=False)["input_ids"])


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of ids as it is: special tokens shown, spaces untouched."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def with_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids ending in EOS: appended unless it is there."""
    eos_id = eos(tokenizer)[1]
    return ids if ids and ids[-1] == eos_id else [*ids, eos_id]


def eos(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """(text, id) of the EOS token; ModelError where there is none."""
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no EOS token, and every completion ends in one; set tokenizer.eos_token")
    return str(tokenizer.eos_token), int(tokenizer.eos_token_id)


def render(turns: Turns, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> str:
    """Text that the chat template makes of turns."""
    return str(apply_template(tokenizer, plain(turns), {**kwargs, "tokenize": False}))


def apply_template(tokenizer: PreTrainedTokenizerBase, conversation: Any, kwargs: Mapping[str, Any]) -> Any:
    """The tokenizer's `apply_chat_template`; ModelError without a template, DataError where it refuses the turns."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "the data is conversational and the tokenizer has no chat template; set tokenizer.chat_template, "
            "or give prompts and completions as plain text"
        )
    try:
        return tokenizer.apply_chat_template(conversation, **kwargs)
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses these turns ({short(str(error), 120)}); change their roles"
        ) from error


def plain(turns: Turns) -> list[dict[str, Any]]:
    """Turns without nulls, which Arrow puts where a turn lacks a key that another one has."""
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def as_ints(ids: Iterable[Any]) -> list[int]:
    """Ids as plain ints, whatever integers they were."""
    return [int(token) for token in ids]
