"""Formats that a program can check, put on any data set's prompts: length, JSON, words, language.

A row's `constraints` are a list of mappings, each with a `kind` and what that kind needs:

    max_words, min_words           count      at most, at least so many words
    json                           keys       the whole completion is one JSON object that has these keys
    include_words, exclude_words   words      each occurs, none occurs; whole words, whatever their case
    language                       language   ISO 639 code; most of the text's language by py3langid

Words are runs of letters and digits, so lengths mean little in scripts that do not part words.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from densepath.data.rows import DataFormat, Row, detect_format, prompt_of, turn_text
from densepath.data.splits import content_hash
from densepath.errors import ConfigError, DataError

KEY = "answer"  # of the JSON object that is asked for
STEP = 5  # limits of words are multiples of it
DRAWN_LIMITS = {"max_words": (10, 20, 30, 50), "min_words": (20, 40)}  # where no demonstration decides
LEAST_LETTERS = 5  # of a word to use or to leave out: shorter ones are mostly function words
LEAST_CONFIDENCE = 0.5  # probability of a demonstration's language, below which it is not asked for
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Kind(str, Enum):
    """What is asked of a completion."""

    MAX_WORDS = "max_words"
    MIN_WORDS = "min_words"
    JSON = "json"
    INCLUDE_WORDS = "include_words"
    EXCLUDE_WORDS = "exclude_words"
    LANGUAGE = "language"


NEEDS = {
    Kind.MAX_WORDS: ("count", int),
    Kind.MIN_WORDS: ("count", int),
    Kind.JSON: ("keys", list),
    Kind.INCLUDE_WORDS: ("words", list),
    Kind.EXCLUDE_WORDS: ("words", list),
    Kind.LANGUAGE: ("language", str),
}
_LENGTHS = {Kind.MAX_WORDS, Kind.MIN_WORDS}


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("Don't panic: it's a well-known 2nd try.")
    ["Don't", 'panic', "it's", 'a', 'well-known', '2nd', 'try']
    """
    return _WORD.findall(text)


def is_met(constraint: Mapping[str, Any], completion: str) -> bool:
    """Whether a completion does what a constraint asks.

    Raises:
        DataError: the constraint has no known kind, or lacks what its kind needs.
        ConfigError: a language is to be told, and py3langid is not installed.

    >>> is_met({"kind": "max_words", "count": 2}, "Hello there"), is_met({"kind": "json", "keys": ["a"]}, '{"b": 1}')
    (True, False)
    """
    kind, value = parsed(constraint)
    if kind is Kind.MAX_WORDS:
        return len(words(completion)) <= int(value)
    if kind is Kind.MIN_WORDS:
        return len(words(completion)) >= int(value)
    if kind is Kind.JSON:
        found = _json(completion)
        return isinstance(found, dict) and all(key in found for key in value)
    if kind is Kind.LANGUAGE:
        return bool(words(completion)) and language_of(completion)[0] == value
    there = [_occurs(word, completion) for word in value]
    return all(there) if kind is Kind.INCLUDE_WORDS else not any(there)


def parsed(constraint: Mapping[str, Any]) -> tuple[Kind, Any]:
    """Kind and value of a constraint.

    Raises:
        DataError: it has no known kind, or lacks what its kind needs.
    """
    try:
        kind = Kind(constraint["kind"])
        name, needed = NEEDS[kind]
    except (KeyError, ValueError, TypeError):
        known = ", ".join(kind.value for kind in Kind)
        raise DataError(f"the constraint {constraint!r} has no known kind; use {known}") from None
    value = constraint.get(name)
    if not isinstance(value, needed) or isinstance(value, bool):
        raise DataError(f"the constraint {dict(constraint)!r} needs {name!r}, a {needed.__name__}")
    return kind, value


def instruction_of(constraint: Mapping[str, Any]) -> str:
    """The sentence that asks for it.

    >>> instruction_of({"kind": "include_words", "words": ["sun", "rain"]})
    'Use these words: sun, rain.'
    """
    kind, value = parsed(constraint)
    if kind is Kind.JSON:
        keys = ", ".join(f'"{key}"' for key in value)
        return f"Answer with one JSON object that has the key {keys}, and nothing else."
    listed = ", ".join(value) if isinstance(value, list) else value
    return {
        Kind.MAX_WORDS: f"Use at most {listed} words.",
        Kind.MIN_WORDS: f"Use at least {listed} words.",
        Kind.INCLUDE_WORDS: f"Use these words: {listed}.",
        Kind.EXCLUDE_WORDS: f"Do not use these words: {listed}.",
        Kind.LANGUAGE: f"Answer in this language: {listed}.",
    }[kind]


def constrained_rows(
    rows: Iterable[Row],
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    *,
    where: Callable[[Row], str] | None = None,
) -> list[dict[str, Any]]:
    """Each row with one or two constraints, written behind its prompt and kept in `constraints`.

    A demonstration meets its constraints: they are read off it, and one that has to be JSON is wrapped in an object.
    Without a completion they are drawn from the prompt. The draw depends on the prompt and the seed alone, so equal
    prompts get equal constraints, and a split by content keeps them together. Of `messages` the turns before the last
    answer become the prompt. Rows that have `constraints` stay as they are.

    Args:
        rows: validated examples that have a prompt.
        seed: of the draw.
        kinds: values of `Kind` to draw from; all if None.
        where: says the place of a row, for rows that are no longer in the order of their source; None counts them.

    Raises:
        DataError: a `text` row, which has no prompt; a completion of several turns, or one that calls tools. It names
            the row.
        ConfigError: no such kind, or languages are among them and py3langid is not installed.
    """
    try:
        allowed = [Kind(kind) for kind in kinds] if kinds is not None else list(Kind)
    except ValueError as error:
        raise ConfigError(f"{error}; use {', '.join(kind.value for kind in Kind)}") from None
    if Kind.LANGUAGE in allowed:
        _identifier()
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(dict(row) if row.get("constraints") else _constrained(row, seed, allowed))
        except DataError as error:
            raise DataError(f"{f'row {number}' if where is None else where(row)}: {error}") from error
    return found


def _constrained(row: Row, seed: int, allowed: Sequence[Kind]) -> dict[str, Any]:
    prompt, completion = prompt_of(row), _completion(row)
    rng = random.Random(f"{seed} {content_hash(row)}")
    asked = prompt if isinstance(prompt, str) else turn_text(prompt[-1])
    candidates = rng.sample(allowed, len(allowed))
    chosen: list[dict[str, Any]] = []
    for kind in candidates:
        taken = {Kind(each["kind"]) for each in chosen}
        if len(chosen) == 2 or Kind.JSON in taken or (chosen and kind is Kind.JSON):
            break
        if kind in _LENGTHS and taken & _LENGTHS:
            continue
        found = _of_demonstration(kind, asked, completion, rng) if completion else _of_prompt(kind, asked, rng)
        chosen += [] if found is None else [{"kind": kind.value, **found}]
        if chosen and rng.random() < 0.5:
            break
    text = "".join("\n" + instruction_of(constraint) for constraint in chosen)
    new: dict[str, Any] = {key: value for key, value in row.items() if key != "messages"}
    new["constraints"] = chosen
    new["prompt"] = prompt + "\n" + text if isinstance(prompt, str) else _behind_last_user_turn(prompt, "\n" + text)
    if completion is not None:
        if any(constraint["kind"] == Kind.JSON.value for constraint in chosen):
            completion = json.dumps({KEY: completion}, ensure_ascii=False)
        is_text = isinstance(prompt, str)
        new["completion"] = completion if is_text else [{"role": "assistant", "content": completion}]
    return new


def _completion(row: Row) -> str | None:
    """Text of the demonstrated answer: of a conversation, its last turn."""
    found = detect_format(row)
    if found is DataFormat.MESSAGES:
        last = row["messages"][-1]
        return _said(last) if last["role"] == "assistant" else None
    if found is not DataFormat.PROMPT_COMPLETION:
        return None
    completion = row["completion"]
    if isinstance(completion, str):
        return completion
    if len(completion) != 1:
        raise DataError(f"a completion of {len(completion)} turns cannot be constrained; use split_turns first")
    return _said(completion[0])


def _said(turn: Mapping[str, Any]) -> str:
    if turn.get("tool_calls"):
        raise DataError("a completion that calls tools cannot be constrained; leave such rows out")
    return turn_text(turn)


def _behind_last_user_turn(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns) - 1)
    return [{**turn, "content": turn_text(turn) + text} if i == last else turn for i, turn in enumerate(turns)]


def _of_demonstration(kind: Kind, prompt: str, completion: str, rng: random.Random) -> dict[str, Any] | None:
    """What of this kind the completion does, or None if nothing can be asked."""
    count = len(words(completion))
    if kind is Kind.MAX_WORDS:
        return {"count": max(STEP, -(-count // STEP) * STEP)}
    if kind is Kind.MIN_WORDS:
        return {"count": count // STEP * STEP} if count >= 2 * STEP else None
    if kind is Kind.JSON:
        return {"keys": [KEY]}
    if kind is Kind.LANGUAGE:
        language, confidence = language_of(completion)
        return {"language": language} if confidence >= LEAST_CONFIDENCE else None
    pair = (completion, prompt) if kind is Kind.INCLUDE_WORDS else (prompt, completion)
    return _draw_words(*pair, rng)


def _of_prompt(kind: Kind, prompt: str, rng: random.Random) -> dict[str, Any] | None:
    """Something of this kind that could be asked of an answer to this prompt."""
    if kind in _LENGTHS:
        return {"count": rng.choice(DRAWN_LIMITS[kind.value])}
    if kind is Kind.JSON:
        return {"keys": [KEY]}
    if kind is Kind.LANGUAGE:
        language, confidence = language_of(prompt)
        return {"language": language} if confidence >= LEAST_CONFIDENCE else None
    return _draw_words(prompt, "", rng)


def _draw_words(there: str, absent: str, rng: random.Random) -> dict[str, Any] | None:
    """One or two longer words of one text that the other does not have."""
    found = sorted(
        {w.lower() for w in words(there) if len(w) >= LEAST_LETTERS and w.isalpha() and not _occurs(w, absent)}
    )
    return {"words": rng.sample(found, min(len(found), rng.choice((1, 2))))} if found else None


def _occurs(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE) is not None


def _json(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)  # NaN and Infinity are not JSON
    except (ValueError, RecursionError):
        return None


def language_of(text: str) -> tuple[str, float]:
    """ISO 639 code of a text's most probable language, and its probability; unsure below a sentence.

    Raises:
        ConfigError: py3langid is not installed.
    """
    language, confidence = _identifier().classify(text)
    return str(language), float(confidence)


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ConfigError(
            "languages are told apart by py3langid, which is not installed: pip install py3langid"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
