"""What a model's context holds: the one check of it."""

from __future__ import annotations

from densepath.errors import ConfigError, DataError


def check_context(tokens: int, context: float, place: str = "", *, max_completion_length: int = 0) -> None:
    """Refuse a row that the context of a model does not hold.

    Args:
        tokens: of a prompt with its completion, EOS included; or of a prompt alone, where the completion is sampled.
        context: of the model, tokens; the shortest of several.
        place: what the message begins with, such as `file, row 7`.
        max_completion_length: of the completion that is sampled, tokens.

    Raises:
        DataError: it is longer.

    >>> check_context(300, 256, "a.jsonl, row 7")
    Traceback (most recent call last):
    densepath.errors.DataError: a.jsonl, row 7: 300 tokens, but the models' context holds 256; shorten or leave it out
    """
    if tokens + max_completion_length <= context:
        return
    beside, lower = "", ""
    if max_completion_length:
        beside, lower = f" beside max_completion_length={max_completion_length}", ", or lower max_completion_length"
    raise DataError(
        f"{place}{': ' * bool(place)}{tokens} tokens{beside}, but the models' context holds {context}; "
        f"shorten or leave it out{lower}"
    )


def room_for_prompts(context: int, max_completion_length: int) -> int:
    """Tokens that the context leaves for a prompt.

    Raises:
        ConfigError: none.
    """
    if max_completion_length >= context:
        raise ConfigError(
            f"max_completion_length={max_completion_length} fills the models' context of {context} tokens; lower it"
        )
    return context - max_completion_length
