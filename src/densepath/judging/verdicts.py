"""What a reply says: a mark from a menu, a rating, or the probabilities of letters; what says nothing is invalid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from densepath.errors import DataError
from densepath.records.judging import TURNED, Judgement, Usage, preference_of

_DOUBLE = re.compile(r"\[\[\s*([A-Za-z0-9<>=.\-]{1,12})\s*\]\]")
_SINGLE = re.compile(r"\[\s*([A-Za-z0-9<>=.\-]{1,12})\s*\]")
_THOUGHTS = re.compile(r"\A(\s*<think>.*?(</think>|\Z)|((?!<think>).)*?</think>)", re.DOTALL)
REFUSED = "refusal"
"""Why a reply ended that is nothing but a refusal."""
_SPACES = " \t\n▁Ġ"  # the last two stand for a space in some servers' tokens


@dataclass(frozen=True)
class Reply:
    """What an endpoint wrote, as the cache keeps it.

    Attributes:
        text: of the answer, without thoughts that the endpoint keeps apart.
        first: tokens that might have come first, with their log-probabilities in nats; None where it tells none.
        usage: tokens of the call; None where it tells none.
        finish: why it ended, as the endpoint says: `stop`, `length`, `content_filter`; or that it is a refusal.
    """

    text: str
    first: tuple[tuple[str, float], ...] | None = None
    usage: Usage | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Marks:
    """A choice from a menu, in double brackets; the last one counts, one that is not on the menu is invalid.

    A reply without double brackets is read by its last choice in single ones. Capitals and small letters are the same.

    Attributes:
        marks: `A>B` and so on -> what it says of the first answer against the second: `>>`, `>`, `=`, `<`, `<<`.

    Raises:
        DataError: a meaning that is none of these, an empty menu, or a mark that is not read in brackets.
    """

    marks: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.marks or not set(self.marks.values()) <= set(TURNED):
            raise DataError(f"marks are {dict(self.marks)}; give each mark one of {' '.join(TURNED)}")
        if unread := [mark for mark in self.marks if not _DOUBLE.fullmatch(f"[[{mark}]]")]:
            raise DataError(
                f"the mark {unread[0]!r} is never read; write up to 12 of the letters A-Z, digits, and <>=.-"
            )

    def read(self, reply: Reply) -> Judgement:
        """The judgement of two answers that a reply says, or why it says none."""
        text = _without_thoughts(reply.text)
        menu = {mark.upper(): meaning for mark, meaning in self.marks.items()}
        found = _DOUBLE.findall(text) or [each for each in _SINGLE.findall(text) if each.upper() in menu]
        if not found or reply.finish == "length":
            return invalid(reply, _nothing_said(reply, text))
        if found[-1].upper() not in menu:
            return invalid(reply, f"its verdict [[{found[-1]}]] is not one of {', '.join(self.marks)}")
        verdict = menu[found[-1].upper()]
        return Judgement(preference_of(verdict), verdict=verdict, reply=reply.text, usage=reply.usage)


@dataclass(frozen=True)
class Rating:
    """A number in double brackets, or in single ones where there is none in double ones.

    Attributes:
        lowest: that may be given.
        highest: that may be given.
        first: whether the first number counts, as in MT-Bench; False: the last.

    Raises:
        DataError: no range.
    """

    lowest: float
    highest: float
    first: bool = False

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise DataError(f"a rating from {self.lowest} to {self.highest} has no range")

    def read(self, reply: Reply) -> Judgement:
        """The grade that a reply says, or why it says none."""
        text = _without_thoughts(reply.text)
        found = _numbers(_DOUBLE.findall(text)) or _numbers(_SINGLE.findall(text))
        if not found or reply.finish == "length":
            return invalid(reply, _nothing_said(reply, text))
        grade = found[0 if self.first else -1]
        if not self.lowest <= grade <= self.highest:
            return invalid(reply, f"its rating {grade:g} is not between {self.lowest:g} and {self.highest:g}")
        return Judgement(grade=grade, reply=reply.text, usage=reply.usage)


@dataclass(frozen=True)
class Letters:
    """The first token's probabilities of some letters: the mean of what the letters are worth, weighted by them.

    A letter that is not among the tokens told has probability 0, as in AlpacaEval; without any there is no judgement.

    Attributes:
        letters: letter -> what it is worth: a preference for the first of two answers, or a grade of one.

    Raises:
        DataError: fewer than two letters, or a worth that is not finite.
    """

    letters: Mapping[str, float]

    def __post_init__(self) -> None:
        if len(self.letters) < 2 or not all(map(math.isfinite, self.letters.values())):
            raise DataError(f"letters are {dict(self.letters)}; give two or more, and what each is worth")

    def worth(self, logprobs: Mapping[str, float]) -> float:
        """What the letters are worth on average.

        Args:
            logprobs: letter -> its log-probability, nats, of one letter at least.

        >>> Letters({"m": 1.0, "M": 0.0}).worth({"m": math.log(0.6), "M": math.log(0.2)})
        0.75
        """
        highest = max(logprobs.values())
        weights = {letter: math.exp(value - highest) for letter, value in logprobs.items()}
        mean = math.fsum(weight * self.letters[each] for each, weight in weights.items()) / math.fsum(weights.values())
        return min(max(mean, min(self.letters.values())), max(self.letters.values()))  # rounding stays in the range

    def read(self, reply: Reply, num_answers: int) -> Judgement:
        """The preference or grade that the first token's probabilities say, or why they say none."""
        if reply.first is None:
            return invalid(reply, f"no log-probabilities of its first token (it ended with {reply.finish!r})")
        told = _letter_logprobs(reply.first, self.letters)
        if not told:
            seen = ", ".join(repr(token) for token, _ in reply.first)
            return invalid(reply, f"none of the letters {', '.join(self.letters)} among its first tokens ({seen})")
        return judgement_of(self.worth(told), num_answers, reply)


def judgement_of(worth: float, num_answers: int, reply: Reply | None = None) -> Judgement:
    """A preference where two answers were shown, a grade where one was."""
    reply = reply or Reply("")
    if num_answers == 2:
        return Judgement(preference=worth, reply=reply.text, usage=reply.usage)
    return Judgement(grade=worth, reply=reply.text, usage=reply.usage)


def invalid(reply: Reply | None, reason: str) -> Judgement:
    """No judgement, with the reason, and with the reply if there was one."""
    empty = Judgement(invalid=reason)
    return empty if reply is None else replace(empty, reply=reply.text, usage=reply.usage)


def _letter_logprobs(told: Iterable[tuple[str, float]], letters: Iterable[str]) -> dict[str, float]:
    """Letter -> its log-probability, nats: of all tokens that are the letter but for spaces."""
    found: dict[str, list[float]] = {}
    for token, logprob in told:
        if (letter := token.strip(_SPACES)) in letters:
            found.setdefault(letter, []).append(logprob)
    return {letter: math.log(math.fsum(map(math.exp, each))) for letter, each in found.items() if max(each) > -700}


def _without_thoughts(text: str) -> str:
    """The text behind the thoughts that it begins with, where a verdict is not yet one.

    They end at </think>, and never without it; their <think> may stand in the prompt. One that stands later is text.
    """
    return _THOUGHTS.sub("", text)


def _numbers(found: Iterable[str]) -> list[float]:
    return [float(each) for each in found if re.fullmatch(r"-?\d+(\.\d*)?", each)]


def _nothing_said(reply: Reply, text: str) -> str:
    """Why a reply holds no verdict."""
    if reply.finish == "length":
        return "the reply was cut off before its end; raise max_tokens in judge_parameters"
    if not text.strip():
        return f"empty reply (it ended with {reply.finish!r})" if reply.finish else "empty reply"
    return f"no verdict in the reply, which ends in {' '.join(text.split())[-50:]!r}"
