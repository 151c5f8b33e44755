"""The few calls of a transformers tokenizer that `encode.py` is made of, with the mistakes that users make named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from densepath.data.rows import Turns, check_unicode, normal_turns, short
from densepath.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_KWARGS = "chat_template_kwargs"
"""Key of tokenizer_config.json under which a tokenizer keeps its own arguments of the chat template."""


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that goes on: what the tokenizer puts before a text, unless it is there, and nothing behind it."""
    ids, opening = tokenise(text, tokenizer), opening_ids(tokenizer)
    return ids if ids[: len(opening)] == opening else opening + ids


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that the tokenizer puts before a text (BOS), whatever it puts behind it.

    Raises:
        ModelError: special tokens change how the text between them is split, so that neither can be told apart.
    """
    probe = "a"
    around, bare = as_ints(tokenizer(text=probe)["input_ids"]), tokenise(probe, tokenizer)
    for start in range(len(around) - len(bare) + 1):
        if around[start : start + len(bare)] == bare:
            return around[:start]
    raise ModelError(
        f"the tokenizer splits {probe!r} into {bare} without special tokens and into {around} with them; "
        "give it a post-processor that only puts tokens around a text"
    )


def tokenise(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a whole text, without the special tokens that a tokenizer puts around it.

    Raises:
        DataError: what is no text, or holds half of a surrogate pair, which a tokenizer fails on.
    """
    if not isinstance(text, str):
        raise DataError(f"{short(repr(text))} is no text")
    check_unicode(text)
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


def template_defaults(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Arguments of the chat template that belong to the tokenizer, and are saved with it in tokenizer_config.json."""
    return dict(tokenizer.init_kwargs.get(TEMPLATE_KWARGS) or {})


def keep_template_defaults(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> dict[str, Any]:
    """Make `given` part of the tokenizer's own arguments of the chat template; returns all of them."""
    if given:
        tokenizer.init_kwargs[TEMPLATE_KWARGS] = {**template_defaults(tokenizer), **given}
    return template_defaults(tokenizer)


def render(turns: Turns, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> str:
    """Text that the chat template makes of turns, with the tokenizer's own arguments and then `kwargs`.

    Raises:
        ModelError: there is no chat template.
        DataError: it refuses the turns.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "the data is conversational and the tokenizer has no chat template; give one with chat_template_path, "
            "set tokenizer.chat_template, or give prompts and completions as plain text"
        )
    try:
        given = {**template_defaults(tokenizer), **kwargs, "tokenize": False}
        return str(tokenizer.apply_chat_template(normal_turns(turns), **given))
    except (TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataError(
            f"the chat template refuses these turns ({short(str(error), 120)}); change their roles or fields"
        ) from error


def as_ints(ids: Iterable[Any]) -> list[int]:
    """Ids as plain ints, whatever integers they were."""
    return [int(token) for token in ids]
