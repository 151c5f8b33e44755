"""Tokenisation, in exactly one place: SFT, scoring and RL see the same ids.

A demonstration is tokenised whole, as TRL's SFTTrainer tokenises it and as a served model reads it: what the chat
template renders for the conversation, or prompt and completion as one text. In these ids the actions are located:

    state_1 | action_1 | state_2 | action_2 | ...

An action is one assistant turn up to and including its EOS; it begins where the ids of its prompt end, which are those
that RL samples after. Nothing is tokenised apart from what stands before it: many tokenizers mark where a text begins.
Where a token holds the end of a prompt and the beginning of its answer, the action begins with that token, as in TRL,
and it is said. Actions are marked by position, never by token id, so that an EOS that is also the pad token stays one.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densepath.data.rows import (
    DataFormat,
    Row,
    Turns,
    check_types,
    conversation_of,
    detect_format,
    is_conversational,
    prompt_of,
    short,
    template_arguments,
)
from densepath.data.tokenizer_calls import decode, eos, render, text_ids, tokenise, with_eos
from densepath.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SAID = ("content", "reasoning_content", "reasoning", "thinking")
"""Keys of an assistant turn whose text the model is to say."""


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
        merged: turns whose first token also holds the end of their prompt.
        rewritten: turns that the chat template renders otherwise once the conversation has gone on.
        left_out: turns that are not imitated, since the template rewrites what stands before them.
        prompted: turns behind an end of the prompt that the template leaves out once they have been answered.
        shortened: turns of whose text or reasoning the template drops a part, even where they are the last.
    """

    rows: int
    dropped: int
    truncated: int
    state_tokens: int
    action_tokens: int
    merged: int = 0
    rewritten: int = 0
    left_out: int = 0
    prompted: int = 0
    shortened: int = 0

    @property
    def notes(self) -> list[str]:
        """A line for each thing that the reader of these figures should know, as `note_lines` says them."""
        return note_lines(self.merged, self.rewritten, self.left_out, self.prompted, self.shortened)


def encode_prompt(
    prompt: str | Turns,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a prompt, equal to those of `GRPOTrainer._tokenize_prompts` (TRL 1.16) but for special tokens said twice.

    Text: with the tokenizer's BOS, unless the text begins with it, and without the EOS that some tokenizers append: a
    completion follows. Turns: rendered by the chat template with its generation prompt, no further special tokens.

    Args:
        prompt: plain text, or a list of turns.
        tokenizer: a transformers tokenizer.
        chat_template_kwargs: further arguments of the chat template, `tools` among them; they go before the
            tokenizer's own.

    Returns:
        Token ids.

    Raises:
        ModelError: turns, but the tokenizer has no chat template.
        DataError: the chat template refuses these turns.
    """
    if isinstance(prompt, str):
        return text_ids(prompt, tokenizer)
    with _explained({"prompt": prompt}):
        return tokenise(
            render(prompt, tokenizer, {**(chat_template_kwargs or {}), "add_generation_prompt": True}), tokenizer
        )


def encode_row_prompt(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what a row asks, with the row's own tools and template arguments: the state that RL samples after.

    Args:
        row: an example in any format that has a prompt.
        tokenizer: a transformers tokenizer.

    Raises:
        DataError, ModelError: as `prompt_of` and `encode_prompt`.
    """
    with _explained(row):
        return encode_prompt(prompt_of(row), tokenizer, template_arguments(row))


@contextlib.contextmanager
def _explained(row: Row) -> Iterator[None]:
    """What is wrong with a row that was not checked before, where reading it fails: checked rows cost nothing.

    Raises:
        DataError: a malformed column or turn.
    """
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError, RecursionError):
        check_types(row)
        raise


def encode_pair(
    prompt: str | Turns,
    completion: str | Turns,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Encoded:
    """Ids of one prompt and one completion of the same kind: those of the row that has the two.

    Args:
        prompt: plain text, or a list of turns.
        completion: plain text, or a list of one assistant turn.
        tokenizer: a transformers tokenizer with an EOS token.
        chat_template_kwargs: further arguments of the chat template.

    Raises:
        DataError, ModelError: as `encode_demonstration`; or what is neither text nor well-formed turns, or several
            turns (use `encode_pairs`).
    """
    row = {"prompt": prompt, "completion": completion}
    for name, value in row.items():
        if value is None:
            raise DataError(f'"{name}" is null; give a string or a list of turns')
    check_types(row)
    if is_conversational(completion) and len(completion) != 1:
        raise DataError(f"the completion has {len(completion)} turns, not one; use encode_pairs")
    return encode_pairs(row, tokenizer, chat_template_kwargs=chat_template_kwargs)[0]


def encode_rendered(text: str, tokenizer: PreTrainedTokenizerBase, prompt: str | None = None) -> Encoded:
    """Ids of a prompt with its answer in one text, as another trainer rendered and decoded it.

    An answer that does not end in EOS was cut, and gets none; what stands behind its EOS (white space) is left out.

    Args:
        text: prompt and answer, special tokens written out.
        tokenizer: a transformers tokenizer with an EOS token.
        prompt: the beginning of the text that is the prompt. None, or another beginning, as of a prompt that was cut:
            the answer begins behind the last generation prompt of the chat template that follows an EOS. Behind the
            last of all where none does, since some templates end no prompt in EOS.

    Raises:
        DataError: no answer is found.
        ModelError: no prompt is given, and the tokenizer's template has no generation prompt.
    """
    if prompt is None or not text.startswith(prompt):
        prompt = text[: _answer_start(text, tokenizer)]
    ids, state = text_ids(text, tokenizer), text_ids(prompt, tokenizer)
    start = _common_prefix(state, ids)
    stop = _end_of_action(ids, start, len(ids), tokenizer)
    return Encoded(tuple(ids[:start]), tuple(ids[start:stop]))


def _answer_start(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Place of the last answer in a rendered conversation, in characters."""
    question = [{"role": "user", "content": "?"}]
    asked, told = (render(question, tokenizer, {"add_generation_prompt": ask}) for ask in (True, False))
    marker = asked[len(told) :] if asked.startswith(told) else ""
    if not marker:
        raise ModelError(
            "the chat template has no generation prompt, by which to find where the answer begins; send the prompt too"
        )
    found = [match.end() for match in re.finditer(re.escape(marker), text)]
    if not found:
        raise DataError(f"no answer: nothing stands behind the generation prompt {marker!r}, which is not there")
    eos_token = eos(tokenizer)[0]
    behind_eos = [place for place in found if text[: place - len(marker)].rstrip().endswith(eos_token)]
    return (behind_eos or found)[-1]


def encode_demonstration(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, list[int]]:
    """One row for TRL's SFTTrainer, already tokenised: use it with `completion_only_loss=True`.

    The ids are those of TRL's SFTTrainer up to and including the EOS of the last action, and completion_mask is 1 on
    the actions, EOS included. Of `messages` every assistant turn is an action; of prompt and completion those of the
    completion; of `text` every token (its first one is marked too, although nothing precedes it to predict it from:
    the shift leaves it out). Where the template renders no EOS at the end, one is appended.

    Args:
        row: a demonstration in any format; its `tools` and `chat_template_kwargs` go to the chat template.
        tokenizer: a transformers tokenizer with an EOS token.
        max_length: tokens to keep at most, from the beginning; the end of the last actions is cut. None keeps all.
        chat_template_kwargs: further arguments of the chat template; the row's own go before them.

    Returns:
        `input_ids` and `completion_mask`, lists of ints of equal length.

    Raises:
        DataError: the prompt alone fills `max_length`, or the chat template refuses the turns.
        ModelError: no EOS token; no chat template; or a template that renders a prompt with another end than it has
            once the completion follows, or ends turns in another token than EOS.

    Warns:
        UserWarning: as `note_lines` says.
    """
    _check_max_length(max_length)
    found = _demonstration(row, tokenizer, chat_template_kwargs, max_length)
    found.warn()
    return found.columns(max_length)


def encode_demonstrations(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    drop_overlong: bool = False,
    source: str = "the data set",
    where: Callable[[Row], str] | None = None,
) -> tuple[Dataset, EncodeCounts]:
    """Data set for TRL's SFTTrainer with the columns of `encode_demonstration`, and what became of the rows.

    Args:
        rows: validated demonstrations.
        tokenizer: a transformers tokenizer with an EOS token.
        max_length: tokens to keep at most per row; None keeps all.
        drop_overlong: leave out and count rows whose prompt alone fills `max_length`, instead of raising.
        source: the name to use in messages.
        where: says the place of a row, for rows that are no longer in the order of their source; None counts them.

    Returns:
        The data set (`input_ids`, `completion_mask`) and the counts.

    Raises:
        DataError, ModelError: as `encode_demonstration`, with source and row (1-based), or `where`; or no row is left.
    """
    from datasets import Dataset

    _check_max_length(max_length)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    seen = dropped = truncated = 0
    noted = [0, 0, 0, 0, 0]
    for number, row in enumerate(rows, start=1):
        seen += 1
        try:
            found = _demonstration(row, tokenizer, None, max_length)
            if drop_overlong and max_length is not None and found.actions[0][0] >= max_length:
                dropped += 1
                continue
            encoded = found.columns(max_length)
        except (DataError, ModelError) as error:
            place = f"{source}, row {number}" if where is None else where(row)
            raise type(error)(f"{place}: {error}") from error
        truncated += len(encoded["input_ids"]) < len(found.input_ids)
        noted = [total + count for total, count in zip(noted, found.noted, strict=True)]
        for name, values in encoded.items():
            columns[name].append(values)
    if not columns["input_ids"]:
        raise DataError(f"{source}: no row is left of {seen} ({dropped} with too long a prompt); raise max_length")
    actions = sum(map(sum, columns["completion_mask"]))
    tokens = sum(map(len, columns["input_ids"]))
    counts = EncodeCounts(seen, dropped, truncated, tokens - actions, actions, *noted)
    return Dataset.from_dict(columns), counts


def encode_pairs(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Encoded]:
    """Pairs to score, one per assistant turn that is an action: everything before it, and the turn with its EOS.

    The ids are slices of `encode_demonstration`'s, so a model is scored on the ids it was trained on. A sequence needs
    a token to begin with: of a `text` row the first token is the prompt.

    Args:
        row: a demonstration in any format.
        tokenizer: a transformers tokenizer with an EOS token.
        max_length: leave out, as training does, actions that begin behind so many tokens, but for the first; None
            takes all. No pair is cut.
        chat_template_kwargs: further arguments of the chat template.

    Returns:
        At least one pair, in the conversation's order.

    Raises:
        DataError, ModelError: as `encode_demonstration`.

    Warns:
        UserWarning: as `note_lines` says.
    """
    found = _demonstration(row, tokenizer, chat_template_kwargs, max_length)
    found.warn()
    ids = found.input_ids
    return [Encoded(ids[: max(1, start)], ids[max(1, start) : stop]) for start, stop in found.actions]


def note_lines(merged: int, rewritten: int, left_out: int, prompted: int, shortened: int) -> list[str]:
    """What is said of turns whose ids are not simply prompt and answer; nothing for those that there are none of.

    Args:
        merged, rewritten, left_out, prompted, shortened: turns, as `EncodeCounts` counts them.
    """
    lines = (
        (
            merged,
            "the first token also holds the end of the prompt, as where an answer begins with a line break; RL "
            "samples what comes after it",
        ),
        (rewritten, "read as the chat template renders it later on, without what it strips (earlier reasoning)"),
        (left_out, "no actions, since the chat template renders what stands before them otherwise later on"),
        (
            prompted,
            "behind the end of the prompt that the model is asked with (such as <think>), which the template drops "
            "later on",
        ),
        (shortened, "without text or reasoning that the chat template drops; another chat_template_path may keep it"),
    )
    return [f"{count} assistant turn{'s' * (count > 1)}: {what}" for count, what in lines if count]


# --- one demonstration -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Demonstration:
    """Ids of a row, [start, stop) of its actions in order, and turns counted as in `EncodeCounts`."""

    input_ids: tuple[int, ...]
    actions: tuple[tuple[int, int], ...]
    merged: int = 0
    rewritten: int = 0
    left_out: int = 0
    prompted: int = 0
    shortened: int = 0

    @property
    def noted(self) -> tuple[int, int, int, int, int]:
        return self.merged, self.rewritten, self.left_out, self.prompted, self.shortened

    def columns(self, max_length: int | None) -> dict[str, list[int]]:
        state = self.actions[0][0]
        if max_length is not None and state >= max_length:
            raise DataError(
                f"the prompt has {state} tokens and max_length is {max_length}, which leaves none for the "
                "completion; raise max_length, shorten the prompt, or drop such rows (drop_overlong)"
            )
        mask = [0] * len(self.input_ids)
        for start, stop in self.actions:
            mask[start:stop] = [1] * (stop - start)
        return {"input_ids": list(self.input_ids[:max_length]), "completion_mask": mask[:max_length]}

    def warn(self) -> None:
        for line in note_lines(*self.noted):
            warnings.warn(line, stacklevel=3)


def _demonstration(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None,
    max_length: int | None = None,
) -> _Demonstration:
    """The whole row; of its actions the first and those that begin within `max_length`."""
    with _explained(row):
        return _read_demonstration(row, tokenizer, chat_template_kwargs, max_length)


def _read_demonstration(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None,
    max_length: int | None,
) -> _Demonstration:
    found = detect_format(row)
    if found is DataFormat.PROMPT:
        raise DataError('a prompt without "completion" is no demonstration; use encode_prompt')
    if found is DataFormat.TEXT:
        ids = _ended_ids(row["text"], "", tokenizer)
        return _Demonstration(tuple(ids), ((0, len(ids)),))
    turns, first_action = conversation_of(row)
    if turns is not None:
        kwargs = {**(chat_template_kwargs or {}), **template_arguments(row)}
        return _conversation(turns, first_action, tokenizer, kwargs, max_length)
    state, ids = text_ids(row["prompt"], tokenizer), _ended_ids(row["completion"], row["prompt"], tokenizer)
    start = _common_prefix(state, ids)
    return _Demonstration(tuple(ids), ((start, len(ids)),), merged=int(start < len(state)))


def _ended_ids(text: str, before: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a whole text, ending in one EOS; white space behind an EOS that the text has itself is left out."""
    eos_token, _ = eos(tokenizer)
    ended = text.rstrip()
    return with_eos(text_ids(before + (ended if ended.endswith(eos_token) else text), tokenizer), tokenizer)


def _conversation(
    turns: Turns,
    first_action: int,
    tokenizer: PreTrainedTokenizerBase,
    kwargs: Mapping[str, Any],
    max_length: int | None,
) -> _Demonstration:
    """The conversation up to its last assistant turn; assistant turns from `first_action` on are actions."""
    answers = [index for index in range(first_action, len(turns)) if turns[index]["role"] == "assistant"]
    if not answers:
        raise DataError("the conversation has no assistant turn to imitate; add the demonstrated answer")

    def rendered(count: int, prompt: bool) -> str:
        return render(turns[:count], tokenizer, {**kwargs, "add_generation_prompt": prompt})

    def rendered_with(answer: str) -> str:
        turn = {"role": "assistant", "content": answer}
        return render([*turns[:last], turn], tokenizer, {**kwargs, "add_generation_prompt": False})

    last = answers[-1]
    asked, answered = rendered(last, True), rendered(last + 1, False)
    whole, dropped = _behind_prompt(asked, answered, rendered_with)
    ids = _closed_ids(whole, asked, tokenizer)
    actions: list[tuple[int, int]] = []
    merged = rewritten = left_out = shortened = 0
    for place, index in enumerate(answers):
        before = rendered(index, True)
        if not whole.startswith(before):
            left_out += 1
            continue
        state = tokenise(before, tokenizer)
        start = _common_prefix(state, ids)
        if actions and max_length is not None and start >= max_length:
            break
        through = whole if index == last else rendered(index + 1, False)
        lost = _lost(turns[index], through, _common_prefix(before, through))
        if lost and dropped.strip() and _opens_thought(dropped.strip(), lost, rendered_with):
            raise DataError(
                f"the chat template drops reasoning of the answer, and the rest would be trained behind the "
                f"{dropped.strip()!r} that the prompt ends with; set a chat_template_path that keeps it"
            )
        # Some templates write EOS behind the last turn alone (Phi-3), or have another token there before (gpt-oss).
        kept = whole.startswith(through.rstrip().removesuffix(eos(tokenizer)[0]).rstrip())
        if index == last:
            stop = len(ids)
        elif kept:
            alone = tokenise(through, tokenizer)
            stop = _end_of_action(ids, start, _common_prefix(alone, ids), tokenizer)
            if alone[stop : stop + 1] == [eos(tokenizer)[1]]:
                stop += _ends_turn(ids, start, stop, tokenise(rendered(index + 1, True), tokenizer), tokenizer)
        else:  # rendered otherwise than alone: it ends where the model would end it
            following = rendered(answers[place + 1], True)
            limit = len(tokenise(following, tokenizer)) if whole.startswith(following) else len(ids)
            stop = _end_of_action(ids, start, limit, tokenizer, first=True)
        if stop <= start:
            left_out += 1
            continue
        actions.append((start, stop))
        merged += start < len(state)
        rewritten += not kept
        shortened += bool(lost)
    return _Demonstration(tuple(ids), tuple(actions), merged, rewritten, left_out, int(bool(dropped)), shortened)


def _lost(turn: Mapping[str, Any], rendered: str, prompt: int) -> list[str]:
    """What a turn says or thinks and its rendering behind the first `prompt` characters lacks, whatever white space.

    Raises:
        DataError: it lacks a call.
    """

    def is_shown(text: object) -> bool:
        sought = "".join(text.split()) if isinstance(text, str) else ""
        return sought in shown[max(0, begun - len(sought) + 1) :]  # a prompt may end with what an answer begins with

    shown, begun = "".join(rendered.split()), len("".join(rendered[:prompt].split()))
    for call in turn.get("tool_calls", ()):
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, Mapping) else function
        if not is_shown(name):
            raise DataError(
                f"the chat template leaves out the call of {short(repr(name))}, which is to be imitated; set another "
                "chat_template_path, or leave the row out"
            )
    return [turn[name] for name in _SAID if not is_shown(turn.get(name))]


def _opens_thought(opening: str, lost: Sequence[str], rendered_with: Callable[[str], str]) -> bool:
    """Whether the end of the prompt that the template drops opens the thought that a turn lost, and stays open.

    So it does where the turn began with it too, or where the template takes what stands before its end ("</think>")
    for a thought, and drops it. A thought that is closed ("<think></think>") or forbidden ("<nothink>") has no end.
    """
    if any(text.lstrip().startswith(opening) for text in lost):
        return True
    found = re.search(r"([^\w\s/]+)(\w[^\s/]*)$", opening)
    return found is not None and rendered_with(f"a{found[1]}/{found[2]}b") == rendered_with("b")


def _behind_prompt(asked: str, answered: str, rendered_with: Callable[[str], str]) -> tuple[str, str]:
    """The conversation as the template renders it, its last answer behind the prompt that the model is asked with.

    With the end of that prompt that the template drops once the answer follows.

    Some templates end the prompt with more than stands before the answer later on ("<nothink>"): the answer then
    follows that. Where it begins, the renderings of two different answers tell.
    """
    if answered.startswith(asked):
        return answered, ""
    one, other = rendered_with("a"), rendered_with("b")
    opening = one[: _common_prefix(one, other)]
    if asked.startswith(opening) and answered.startswith(opening):
        return asked + answered[len(opening) :], asked[len(opening) :]
    shared = _common_prefix(answered, asked)
    raise ModelError(
        f"the chat template renders {short(repr(asked[shared:]), 40)} in the prompt and "
        f"{short(repr(answered[shared:]), 40)} there once the completion follows; set chat_template_kwargs or "
        "another chat template, leave out what it drops of the turns before (reasoning beside tool_calls), or give "
        "the rows as plain text"
    )


def _closed_ids(whole: str, before: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a rendered conversation up to the EOS of its last turn, which is appended where none was rendered."""
    ids = tokenise(whole, tokenizer)
    action = whole[len(before) :]
    eos_token, eos_id = eos(tokenizer)
    if eos_token in action and not action[action.rfind(eos_token) + len(eos_token) :].strip():
        stop = _end_of_action(ids, _common_prefix(tokenise(before, tokenizer), ids), len(ids), tokenizer)
        if ids[stop - 1] != eos_id:
            raise ModelError(
                f"the chat template ends the turn in EOS, and the tokenizer reads that {eos_token!r} as other text; "
                "load it without split_special_tokens, with EOS as a special token that any text may stand beside"
            )
        return ids[:stop]
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and action.rstrip().endswith(token.content):
            raise ModelError(
                f"the chat template ends assistant turns with {token.content!r}, the tokenizer's EOS is "
                f"{tokenizer.eos_token!r}; set eos_token to {token.content!r}, so that sampling stops there, or "
                "leave out rows that end so"
            )
    return [*ids, eos_id]


def _end_of_action(
    ids: Sequence[int], start: int, limit: int, tokenizer: PreTrainedTokenizerBase, *, first: bool = False
) -> int:
    """End of the action in [start, limit): behind its last EOS (or first), where only white space follows that one.

    Of several with nothing but white space between them the first counts: sampling stops there. Without one the action
    ends at the limit, or behind the EOS that stands there.
    """
    eos_id = eos(tokenizer)[1]
    ends = [place + 1 for place in range(start, limit) if ids[place] == eos_id]
    if first:
        return ends[0] if ends else start

    def blank(begin: int, end: int) -> bool:
        return not decode(ids[begin:end], tokenizer).strip()

    if ends and blank(ends[-1], limit):
        while len(ends) > 1 and blank(ends[-2], ends[-1] - 1):
            ends.pop()
        return ends[-1]
    # Some templates end a turn only once another one follows.
    return limit + (ids[limit : limit + 1] == [eos_id])


def _ends_turn(
    ids: Sequence[int], start: int, stop: int, asked: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether the action that has no EOS ends with the special token at `stop`.

    Not where it ends in one before, nor where that one begins the next turn: a prompt of the model's (`asked`) behind
    the action then goes on otherwise.
    """

    def special(token: int) -> bool:
        return not tokenizer.decode([token], skip_special_tokens=True)

    following = ids[stop : stop + 1]
    written = [token for token in ids[start:stop] if decode([token], tokenizer).strip()]
    return following == asked[stop : stop + 1] and any(map(special, following)) and not any(map(special, written[-1:]))


def _common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Number of ids, or characters, with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _check_max_length(max_length: int | None) -> None:
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length is {max_length}; it must hold at least a prompt and a completion token")
