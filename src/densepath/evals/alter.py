"""One digit of one number in a text altered: the cheapest answer that is known to be wrong, and where."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Digits in groups of three or not, with decimals or not; not part of a word, as in "3rd" or "mp3".
_NUMBER = re.compile(r"(?<![\w.,])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![A-Za-z_]|[.,]?[0-9])", re.ASCII)


@dataclass(frozen=True)
class AlteredText:
    """A text in which one digit was replaced.

    Attributes:
        text: the altered text, as long as the original one.
        start: where the altered number begins, in characters.
        end: where it ends.
        at: where the altered digit stands.
        before: the number as it was.
        after: the number as it is: the same digits but for one, the same sign, separators and decimals.
    """

    text: str
    start: int
    end: int
    at: int
    before: str
    after: str


def numbers_in(text: str) -> list[tuple[int, int]]:
    """(start, end) in characters of each number written in digits.

    >>> text = "<<16-3=13>>13, the 2nd at $1,250.50."
    >>> [text[start:end] for start, end in numbers_in(text)]
    ['16', '3', '13', '13', '1,250.50']
    """
    return [match.span() for match in _NUMBER.finditer(text)]


def alterations(text: str, rng: random.Random) -> Iterator[AlteredText]:
    """Ways to alter the text in one digit, in random order: a number, one of its digits, another digit in its place.

    Each number of the text is equally likely to be the first one altered. A number never begins with a 0 that it did
    not begin with, so it keeps its length when it is read.

    Args:
        text: anything.
        rng: decides; the same state gives the same order.
    """
    spans = numbers_in(text)
    rng.shuffle(spans)
    for start, end in spans:
        number = text[start:end]
        places = [index for index, character in enumerate(number) if character.isdigit()]
        rng.shuffle(places)
        for place in places:
            digits = [digit for digit in "0123456789" if digit != number[place] and (place or digit != "0")]
            rng.shuffle(digits)
            for digit in digits:
                altered = number[:place] + digit + number[place + 1 :]
                whole = text[:start] + altered + text[end:]
                yield AlteredText(whole, start, end, start + place, number, altered)
