"""What stands in a cell or a sentence: runs of text with their style, and figures as such."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from densepath.records.estimates import Interval

MINUS, DASH = "−", "–"
"""The sign of a negative number, and what stands where nothing was measured."""


@dataclass(frozen=True)
class Run:
    """A run of text.

    `style` is empty, "strong", "small" (a lighter voice, in stacked tables a line of its own), "code", "quote", "tag"
    (a pill), "better" or "worse" (a pill with the colour of a verdict), or a class of the page's style sheet. `target`
    is the id of the section that it leads to.
    """

    text: str
    style: str = ""
    target: str = ""


Words: TypeAlias = str | Run | tuple[str | Run, ...]
"""Text, or runs of it; a plain string is a run without style."""


def runs(words: Words) -> tuple[Run, ...]:
    """Words as runs."""
    many = words if isinstance(words, tuple) else (words,)
    return tuple(Run(one) if isinstance(one, str) else one for one in many)


def number(value: float | None, form: str = ".3f", *, missing: str = DASH) -> str:
    """A number in a format of Python's, with the true minus sign.

    >>> number(-0.5, "+.1f"), number(None)
    ('−0.5', '–')
    """
    return missing if value is None else format(value, form).replace("-", MINUS)


def nats(value: float | None, form: str = "+.2f") -> str:
    """As `number`, with two significant digits where the format would show fewer: a small reward is not none.

    >>> nats(0.1234), nats(-0.00042), nats(0.0)
    ('+0.12', '−0.00042', '+0.00')
    """
    decimals = int(form[-2])
    few = value is not None and 0 < abs(value) < 10 ** (1 - decimals)
    return number(value, f"{form[:-2]}2g" if few else form)


def nats_interval(value: Interval) -> str:
    """`+mean [low, high]` with three decimals, or as many as show two significant digits of the larger end.

    >>> nats_interval(Interval(0.0004, 0.0001, 0.0007, 10))
    '+0.00040 [+0.00010, +0.00070]'
    """
    size = max(abs(value.low), abs(value.high))
    return interval_text(value, max(3, 1 - math.floor(math.log10(size))) if size else 3, signed=True)


def share(value: float | None) -> str:
    """A share as percent."""
    return DASH if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """A whole number with its thousands set apart."""
    return number(value, ",.0f")


def duration(seconds: float | None) -> str:
    """A time as seconds, minutes or hours."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def interval_text(value: Interval | None, digits: int = 3, *, signed: bool = False, missing: str = DASH) -> str:
    """`mean [low, high]`.

    Args:
        value: the quantity, in its own unit.
        digits: decimals.
        signed: write "+" before a positive number (for differences).
        missing: what stands for None.

    >>> interval_text(Interval(0.5, 0.4, 0.6, 10), 2)
    '0.50 [0.40, 0.60]'
    """
    return "".join(run.text for run in runs(interval(value, digits, signed=signed, missing=missing)))


def interval(value: Interval | None, digits: int = 3, *, signed: bool = False, missing: str = DASH) -> Words:
    """As `interval_text`, with the mean in a strong voice and the interval in a lighter one."""
    if value is None:
        return Run(missing, "strong")
    form = f"{'+' if signed else ''}.{digits}f"
    mean = Run(number(value.mean, form), "strong")
    return (mean, " ", Run(f"[{number(value.low, form)}, {number(value.high, form)}]", "small"))


def short(words: Words) -> str:
    """The text without the 0 before a decimal point, so that a row fits a terminal.

    >>> short("0.50 [−0.40, 10.60]")
    '.50 [−.40, 10.60]'
    """
    return re.sub(r"(?<![0-9])0\.", ".", "".join(run.text for run in runs(words)))


def verdict(word: str, text: str = "") -> Run:
    """A verdict as a pill: coloured where it is better or worse."""
    return Run(text or word, word if word in ("better", "worse") else "tag")
