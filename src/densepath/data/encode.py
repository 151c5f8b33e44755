"""Tokenisation, in exactly one place: SFT, scoring and RL see byte-identical ids.

A demonstration is a sequence of segments, each tokenised apart from its neighbours:

    state_1 | action_1 | state_2 | action_2 | ...

A state is what the model is conditioned on (prompt, user and tool turns, the template's marks); an action is one
assistant turn up to and including its EOS. Tokenised together, the characters beside a border can merge into other
tokens, and the model would be trained on ids that it never samples after this prompt. Actions are marked by position,
never by token id, so that an EOS which is also the pad token stays an action.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densepath.data.rows import DataFormat, Row, Turns, conversation_of, detect_format, is_conversational, short
from densepath.data.tokenizer_calls import apply_template, as_ints, eos, plain, render, tokenise, with_eos
from densepath.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of one prompt and one completion, to be scored as they are.

    Attributes:
        prompt_ids: the state before the first action; at least one token.
        completion_ids: the actions, EOS included unless the completion was cut; at least one token.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        object.__setattr__(self, "completion_ids", tuple(self.completion_ids))
        if not self.prompt_ids or not self.completion_ids:
            raise DataError(
                f"the prompt has {len(self.prompt_ids)} tokens and the completion {len(self.completion_ids)}; "
                "each needs at least one"
            )


@dataclass(frozen=True, slots=True)
class EncodeCounts:
    """What became of the rows of a data set when they were encoded.

    Attributes:
        rows: rows that came in.
        dropped: rows left out because the prompt alone fills `max_length`.
        truncated: rows kept whose end was cut, EOS included.
        state_tokens: tokens of the kept rows that are conditioned on.
        action_tokens: tokens of the kept rows that are imitated, EOS included.
    """

    rows: int
    dropped: int
    truncated: int
    state_tokens: int
    action_tokens: int


def encode_prompt(
    prompt: str | Turns,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a prompt, equal to those of `GRPOTrainer._tokenize_prompts` (TRL 1.16).

    Text: with the tokenizer's own special tokens. Turns: rendered by the chat template with its generation prompt, no
    further special tokens.

    Args:
        prompt: plain text, or a list of turns.
        tokenizer: a transformers tokenizer.
        chat_template_kwargs: further arguments of the chat template.

    Returns:
        Token ids.

    Raises:
        ModelError: turns, but the tokenizer has no chat template.
        DataError: the chat template refuses these turns.
    """
    if isinstance(prompt, str):
        return as_ints(tokenizer(text=[prompt])["input_ids"][0])
    kwargs = {**(chat_template_kwargs or {}), "add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return as_ints(apply_template(tokenizer, [plain(prompt)], kwargs)["input_ids"][0])


def encode_completion(
    completion: str | Turns,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: Turns | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a completion, tokenised apart from its prompt and ending in EOS.

    Text: no special tokens but EOS, which is appended unless it is there. One assistant turn: what the chat template
    renders after the prompt's generation prompt, cut right after the final EOS (ChatML renders a newline behind it).

    Args:
        completion: plain text, or a list of one assistant turn.
        tokenizer: a transformers tokenizer with an EOS token.
        prompt: the turns before the completion; required with turns.
        chat_template_kwargs: further arguments of the chat template.

    Returns:
        Token ids; the last one is EOS.

    Raises:
        ModelError: no EOS token; no chat template; or a template that renders prompt + completion with another
            beginning than the prompt, or ends turns in another token than EOS.
        DataError: several turns (use `encode_pairs`), or turns without their prompt.
    """
    if isinstance(completion, str):
        return with_eos(tokenise(completion, tokenizer), tokenizer)
    if prompt is None or not is_conversational(prompt):
        raise DataError("a conversational completion is rendered after its turns; give them as prompt")
    if len(completion) != 1:
        raise DataError(f"the completion has {len(completion)} turns, not one; use encode_pairs")
    segments = _conversation_segments([*prompt, *completion], len(prompt), tokenizer, chat_template_kwargs)
    if not segments:
        raise DataError(f"the completion is a {completion[0]['role']} turn; only assistant turns are actions")
    return segments[0][1]


def encode_demonstration(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, list[int]]:
    """One row for TRL's SFTTrainer, already tokenised: use it with `completion_only_loss=True`.

    input_ids = state_1 ⊕ action_1 ⊕ ... ⊕ action_n, and completion_mask is 1 on the actions, EOS included.
    Of `messages` every assistant turn is an action; of prompt and completion those of the completion; of `text` every
    token (its first one is marked too, although nothing precedes it to predict it from: the shift leaves it out).

    Args:
        row: a demonstration in any format.
        tokenizer: a transformers tokenizer with an EOS token.
        max_length: tokens to keep at most, from the beginning; the end of the last actions is cut. None keeps all.
        chat_template_kwargs: further arguments of the chat template.

    Returns:
        `input_ids` and `completion_mask`, lists of ints of equal length.

    Raises:
        DataError: the prompt alone fills `max_length`, or the chat template refuses the turns.
        ModelError: tokenizer or chat template do not serve, as in `encode_completion`.
    """
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length is {max_length}; it must hold a prompt and a completion token")
    input_ids, mask = _flatten(_segments(row, tokenizer, chat_template_kwargs))
    return _cut(input_ids, mask, max_length)


def encode_demonstrations(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    drop_overlong: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    source: str = "the data set",
) -> tuple[Dataset, EncodeCounts]:
    """Data set for TRL's SFTTrainer with the columns of `encode_demonstration`, and what became of the rows.

    Args:
        rows: validated demonstrations.
        tokenizer: a transformers tokenizer with an EOS token.
        max_length: tokens to keep at most per row; None keeps all.
        drop_overlong: leave out and count rows whose prompt alone fills `max_length`, instead of raising.
        chat_template_kwargs: further arguments of the chat template.
        source: the name to use in messages.

    Returns:
        The data set (`input_ids`, `completion_mask`) and the counts.

    Raises:
        DataError, ModelError: as `encode_demonstration`, with source and row (1-based); or no row is left.
    """
    from datasets import Dataset

    _check_max_length(max_length)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    seen = dropped = truncated = 0
    for number, row in enumerate(rows, start=1):
        seen += 1
        try:
            input_ids, mask = _flatten(_segments(row, tokenizer, chat_template_kwargs))
            if drop_overlong and max_length is not None and mask.index(1) >= max_length:
                dropped += 1
                continue
            encoded = _cut(input_ids, mask, max_length)
        except (DataError, ModelError) as error:
            raise type(error)(f"{source}, row {number}: {error}") from error
        truncated += len(encoded["input_ids"]) < len(input_ids)
        for name, values in encoded.items():
            columns[name].append(values)
    if not columns["input_ids"]:
        raise DataError(f"{source}: no row is left of {seen} ({dropped} with too long a prompt); raise max_length")
    actions = sum(map(sum, columns["completion_mask"]))
    tokens = sum(map(len, columns["input_ids"]))
    counts = EncodeCounts(seen, dropped, truncated, tokens - actions, actions)
    return Dataset.from_dict(columns), counts


def encode_pairs(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Encoded]:
    """Pairs to score, one per assistant turn: everything before it, and the turn with its EOS.

    The ids are slices of `encode_demonstration`'s, so a model is scored on the ids it was trained on. Of a `text` row
    the first token is the prompt.

    Args:
        row: a demonstration in any format.
        tokenizer: a transformers tokenizer with an EOS token.
        chat_template_kwargs: further arguments of the chat template.

    Returns:
        At least one pair, in the conversation's order.

    Raises:
        DataError, ModelError: as `encode_demonstration`.
    """
    segments = _segments(row, tokenizer, chat_template_kwargs)
    if detect_format(row) is DataFormat.TEXT:
        ids = segments[0][1]
        return [Encoded(tuple(ids[:1]), tuple(ids[1:]))]
    pairs: list[Encoded] = []
    before: list[int] = []
    for state, action in segments:
        before += state
        pairs.append(Encoded(tuple(before), tuple(action)))
        before += action
    return pairs


# --- segments ------------------------------------------------------------------------------------------------------


def _segments(
    row: Row, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any] | None
) -> list[tuple[list[int], list[int]]]:
    """(state ids, action ids) in order; of a `text` row the state is empty."""
    found = detect_format(row)
    if found is DataFormat.PROMPT:
        raise DataError('a prompt without "completion" is no demonstration; use encode_prompt')
    if found is DataFormat.TEXT:
        return [([], with_eos(as_ints(tokenizer(text=[row["text"]])["input_ids"][0]), tokenizer))]
    turns, first_action = conversation_of(row)
    if turns is None:
        state = encode_prompt(row["prompt"], tokenizer)
        return [(state, encode_completion(row["completion"], tokenizer))]
    segments = _conversation_segments(turns, first_action, tokenizer, chat_template_kwargs)
    if not segments:
        raise DataError("the conversation has no assistant turn to imitate; add the demonstrated answer")
    return segments


def _conversation_segments(
    turns: Turns,
    first_action: int,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> list[tuple[list[int], list[int]]]:
    """Segments up to the last assistant turn; the turns from `first_action` on that are assistant's are actions."""
    kwargs = dict(chat_template_kwargs or {})
    segments: list[tuple[list[int], list[int]]] = []
    done = ""  # the text rendered so far: states and actions, up to the last EOS
    for index in range(first_action, len(turns)):
        if turns[index]["role"] != "assistant":
            continue
        before = render(turns[:index], tokenizer, {**kwargs, "add_generation_prompt": True})
        through = render(turns[: index + 1], tokenizer, {**kwargs, "add_generation_prompt": False})
        action = _action_text(before, through, tokenizer)
        if not before.startswith(done):
            raise ModelError(
                f"the chat template renders the conversation before turn {index + 1} differently once it has gone on "
                "(some templates strip earlier reasoning); make one row per assistant turn with split_turns"
            )
        if segments:
            state_ids = tokenise(before[len(done) :], tokenizer)
        else:
            state_ids = encode_prompt(turns[:index], tokenizer, kwargs)
        segments.append((state_ids, with_eos(tokenise(action, tokenizer), tokenizer)))
        done = before + action
    return segments


def _action_text(before: str, through: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template renders for an assistant turn, cut right after its EOS."""
    if not through.startswith(before):
        shared = next(i for i, (a, b) in enumerate(zip(through + "\0", before + "\0", strict=False)) if a != b)
        raise ModelError(
            f"the chat template renders {short(repr(before[shared:]), 40)} at the prompt's end and "
            f"{short(repr(through[shared:]), 40)} there once the completion follows; set chat_template_kwargs or "
            "another chat template, or give the rows as plain text"
        )
    action = through[len(before) :]
    eos_token, _ = eos(tokenizer)
    end = action.rfind(eos_token) + len(eos_token)
    if eos_token in action and not action[end:].strip():
        return action[:end]
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and action.rstrip().endswith(token.content):
            raise ModelError(
                f"the chat template ends assistant turns with {token.content!r}, the tokenizer's EOS is "
                f"{tokenizer.eos_token!r}; set tokenizer.eos_token to {token.content!r}, so that sampling stops there"
            )
    return action


def _flatten(segments: list[tuple[list[int], list[int]]]) -> tuple[list[int], list[int]]:
    """(input_ids, completion_mask) of the segments joined."""
    input_ids: list[int] = []
    mask: list[int] = []
    for state, action in segments:
        input_ids += state + action
        mask += [0] * len(state) + [1] * len(action)
    return input_ids, mask


def _cut(input_ids: list[int], mask: list[int], max_length: int | None) -> dict[str, list[int]]:
    _check_max_length(max_length)
    if max_length is not None and mask.index(1) >= max_length:
        raise DataError(
            f"the prompt has {mask.index(1)} tokens and max_length is {max_length}, which leaves none for the "
            "completion; raise max_length, shorten the prompt, or drop such rows (drop_overlong)"
        )
    return {"input_ids": input_ids[:max_length], "completion_mask": mask[:max_length]}


def _check_max_length(max_length: int | None) -> None:
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length is {max_length}; it must hold at least a prompt and a completion token")
