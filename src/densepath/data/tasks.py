"""Tasks made from templates, with a program that checks the answer: demonstrations with known, realistic noise.

Six families over lists of 3 to 5 items. A wrong demonstration is mostly the input copied unchanged, which is how small
models fail; a correct reward is one that ranks it below the right answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum
from typing import Any

from densepath.data.rows import Row
from densepath.data.splits import content_hash
from densepath.errors import ConfigError, DataError

SYSTEM_TEXT = "Reply with the answer only."
SEPARATOR = ", "
COPY_SHARE = 0.7  # of the wrong demonstrations; the other kinds share the rest evenly
MIN_ITEMS, MAX_ITEMS = 3, 5
MAX_NUMBER = 99  # two digits: few tokens, and enough lists
_MAX_TRIES = 1000  # draws in a row without a new prompt before the families count as used up


class TaskFamily(str, Enum):
    """What is asked about the list."""

    REVERSE = "reverse"
    SORT_WORDS = "sort_words"
    LAST_WORD = "last_word"
    CAPITALS = "capitals"
    COUNT = "count"
    SORT_NUMBERS = "sort_numbers"


class Noise(str, Enum):
    """How a demonstration is wrong; NONE in a correct one."""

    NONE = "none"
    COPY = "copy"  # the list as it was given
    DROP = "drop"  # the answer without one of its items
    SWAP = "swap"  # the answer with two neighbours exchanged
    OFF_BY_ONE = "off_by_one"  # a number one too high or low, or the word beside the last


PHRASINGS: dict[TaskFamily, tuple[str, ...]] = {
    TaskFamily.REVERSE: (
        "Reverse this list: {items}",
        "Write these words in reverse order: {items}",
        "List these words backwards, last one first: {items}",
        "Give the list from back to front: {items}",
    ),
    TaskFamily.SORT_WORDS: (
        "Sort these words alphabetically: {items}",
        "Put these words in alphabetical order: {items}",
        "Order this list from A to Z: {items}",
        "Arrange the words alphabetically: {items}",
    ),
    TaskFamily.LAST_WORD: (
        "What is the last word of this list? {items}",
        "Name the final word: {items}",
        "Which word comes last? {items}",
        "Give only the last of these words: {items}",
    ),
    TaskFamily.CAPITALS: (
        "Write these words in capitals: {items}",
        "Put this list in capital letters: {items}",
        "Change every letter to upper case: {items}",
        "Rewrite the words in upper case: {items}",
    ),
    TaskFamily.COUNT: (
        "How many words are in this list? {items}",
        "Count the items: {items}",
        "How many things are listed here? {items}",
        "Give the number of words: {items}",
    ),
    TaskFamily.SORT_NUMBERS: (
        "Sort these numbers from low to high: {items}",
        "Put these numbers in ascending order: {items}",
        "Order the numbers, smallest first: {items}",
        "Arrange these numbers from small to large: {items}",
    ),
}

_LIST_NOISE = (Noise.COPY, Noise.DROP, Noise.SWAP)
_NOISE_OF: dict[TaskFamily, tuple[Noise, ...]] = {
    TaskFamily.REVERSE: _LIST_NOISE,
    TaskFamily.SORT_WORDS: _LIST_NOISE,
    TaskFamily.LAST_WORD: (Noise.COPY, Noise.OFF_BY_ONE),
    TaskFamily.CAPITALS: _LIST_NOISE,
    TaskFamily.COUNT: (Noise.COPY, Noise.OFF_BY_ONE),
    TaskFamily.SORT_NUMBERS: (*_LIST_NOISE, Noise.OFF_BY_ONE),
}

_WORDS = """
    apple arm army baby back bag ball bank bath bean bear bed bee bell bird boat body bone book bottle
    bowl box boy bread brick bridge brush bus butter button cake camp candle cap car card cat chair cheese cherry
    chin clock cloud coat coffee coin corn cow cup desk dish dog door dress drum duck ear earth egg
    engine eye face farm feather field finger fire fish flag floor flower fog foot forest fork fox frog fruit
    game garden gate girl glass glove goat gold grape grass hair hammer hand hat head heart hen hill honey
    horn horse house ice iron island jacket jam jar jelly key king kitchen kite knee knife ladder lake lamp
    leaf leg lemon letter lion lip lock map market meal meat milk mirror money moon mouse mouth nail neck
    needle nest night nose nut oak ocean office onion orange oven owl page paint pan paper park pear pen
    pencil pepper pie pig pillow pin plane plant plate pocket pond pot queen rabbit rain rice ring river road
    rock roof room root rope rose salt sand school sea seed sheep shelf ship shirt shoe sky snake snow
    soap sock song soup spoon star stone sugar sun table tail tea tent tiger tooth town toy train tree
"""
WORDS = tuple(_WORDS.split())


def generate_tasks(
    n: int,
    *,
    seed: int,
    error_rate: float = 0.35,
    families: Sequence[TaskFamily | str] | None = None,
    noise: Sequence[Noise | str] | None = None,
    system: str | None = SYSTEM_TEXT,
) -> list[dict[str, Any]]:
    """Demonstrations of list tasks, some of them wrong on purpose.

    The families take turns; phrasing, items and noise are drawn from `random.Random(seed)`, so the first k rows of a
    longer call with the same arguments are those of a call for k. Prompts differ within a call, by content hash.

    Args:
        n: rows to make.
        seed: of the draws.
        error_rate: probability in [0, 1] that a demonstration is wrong.
        families: which families take turns; None for all six.
        noise: the kinds of error to use; None for all that suit a family, COPY with a share of 0.7.
        system: text of the system turn; None for no system turn.

    Returns:
        Rows with `prompt` and `completion` (turns), `answer` (the right one), `family`, `correct` (of the
        demonstration), `noise` (the kind of its error, or "none").

    Raises:
        ConfigError: an argument out of range, a noise that does not suit a family, or no new prompts left.

    >>> row = generate_tasks(1, seed=0, error_rate=0.0)[0]
    >>> row["family"], check_answer(row["completion"][0]["content"], row)
    ('reverse', True)
    """
    if n < 1 or not 0.0 <= error_rate <= 1.0:
        raise ConfigError(f"n is {n} and error_rate is {error_rate}; n must be at least 1, the rate in [0, 1]")
    turns = _members(TaskFamily, families, "family") if families is not None else list(TaskFamily)
    kinds = {family: _kinds_for(family, noise) for family in turns}
    rng = random.Random(seed)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    for index in range(n):
        family = turns[index % len(turns)]
        items, prompt = _new_prompt(family, rng, system, seen)
        answer = _answer(family, items)
        kind = _draw_noise(kinds[family], rng) if rng.random() < error_rate else Noise.NONE
        said = answer if kind is Noise.NONE else _wrong(family, kind, items, rng)
        rows.append(
            {
                "prompt": prompt,
                "completion": [{"role": "assistant", "content": SEPARATOR.join(said)}],
                "answer": SEPARATOR.join(answer),
                "family": family.value,
                "correct": kind is Noise.NONE,
                "noise": kind.value,
            }
        )
    return rows


def check_answer(completion: str, row: Row) -> bool:
    """Whether a completion is the row's answer: case counts, the amount of whitespace and a final period do not.

    Args:
        completion: text that a model (or demonstration) gave.
        row: has the right `answer`.

    Returns:
        True when both are equal after `normalise_answer`.

    Raises:
        DataError: the row has no `answer`.
    """
    answer = row.get("answer")
    if not isinstance(answer, str):
        raise DataError(f'the row has no "answer" to compare with (it is {answer!r}); add the right one as text')
    return normalise_answer(completion) == normalise_answer(answer)


def normalise_answer(text: str) -> str:
    """Text stripped, each run of whitespace as one space, without one final period.

    >>> normalise_answer(" cat,  DOG.\\n")
    'cat, DOG'
    """
    return " ".join(text.split()).removesuffix(".").rstrip()


def _new_prompt(
    family: TaskFamily, rng: random.Random, system: str | None, seen: set[str]
) -> tuple[list[str], list[dict[str, str]]]:
    """Items and prompt that were not seen before; the items never are the answer already."""
    for _ in range(_MAX_TRIES):
        items = _draw_items(family, rng)
        text = rng.choice(PHRASINGS[family]).format(items=SEPARATOR.join(items))
        prompt = [{"role": "system", "content": system}] if system is not None else []
        prompt.append({"role": "user", "content": text})
        key = content_hash({"prompt": prompt})
        if key not in seen and _answer(family, items) != items:
            seen.add(key)
            return items, prompt
    raise ConfigError(f"no new {family.value} prompt in {_MAX_TRIES} draws; ask for fewer tasks or more families")


def _draw_items(family: TaskFamily, rng: random.Random) -> list[str]:
    """Items of a list, all different."""
    size = rng.randint(MIN_ITEMS, MAX_ITEMS)
    if family is TaskFamily.SORT_NUMBERS:
        return [str(number) for number in rng.sample(range(1, MAX_NUMBER + 1), size)]
    return rng.sample(WORDS, size)


def _answer(family: TaskFamily, items: list[str]) -> list[str]:
    """Items of the right answer."""
    if family is TaskFamily.REVERSE:
        return items[::-1]
    if family is TaskFamily.SORT_WORDS:
        return sorted(items)
    if family is TaskFamily.LAST_WORD:
        return items[-1:]
    if family is TaskFamily.CAPITALS:
        return [item.upper() for item in items]
    if family is TaskFamily.COUNT:
        return [str(len(items))]
    return sorted(items, key=int)


def _wrong(family: TaskFamily, kind: Noise, items: list[str], rng: random.Random) -> list[str]:
    """Items of a wrong answer, never right by chance: items differ from each other, and the list from its answer."""
    answer = _answer(family, items)
    if kind is Noise.COPY:
        return items
    if kind is Noise.DROP:
        gone = rng.randrange(len(answer))
        return answer[:gone] + answer[gone + 1 :]
    if kind is Noise.SWAP:
        at = rng.randrange(len(answer) - 1)
        return [*answer[:at], answer[at + 1], answer[at], *answer[at + 2 :]]
    if family is TaskFamily.LAST_WORD:
        return [items[-2]]
    at = rng.randrange(len(answer))
    changed = str(int(answer[at]) + rng.choice((-1, 1)))
    return [*answer[:at], changed, *answer[at + 1 :]]


def _draw_noise(kinds: Sequence[Noise], rng: random.Random) -> Noise:
    if Noise.COPY not in kinds or len(kinds) == 1:
        return rng.choice(kinds)
    if rng.random() < COPY_SHARE:
        return Noise.COPY
    return rng.choice([kind for kind in kinds if kind is not Noise.COPY])


def _kinds_for(family: TaskFamily, noise: Sequence[Noise | str] | None) -> list[Noise]:
    suitable = _NOISE_OF[family]
    if noise is None:
        return list(suitable)
    asked = _members(Noise, noise, "noise")
    kinds = [kind for kind in suitable if kind in asked]
    if not kinds:
        names = ", ".join(kind.value for kind in suitable)
        raise ConfigError(f"no noise that was asked for suits the family {family.value}; add one of {names}")
    return kinds


def _members(kind: type[Any], names: Sequence[Any], what: str) -> list[Any]:
    """Members of an enum by name; at least one."""
    try:
        members = [kind(name) for name in names]
    except ValueError:
        known = {member.value for member in kind}
        bad = next(name for name in names if name not in known)
        raise ConfigError(f"{what} {bad!r} does not exist; choose from {', '.join(sorted(known))}") from None
    if not members:
        raise ConfigError(f"no {what} is given; name at least one, or leave it out for all")
    return members
