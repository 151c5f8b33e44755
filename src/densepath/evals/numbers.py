"""Numbers as people and models write them, read exactly, or not at all: a numeral is never taken for a part of itself.

A numeral is found whole first, with all that is written onto it (separators, an exponent, the other half of a
fraction), and only then read. What does not fit the notations below as a whole is not understood.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypeAlias

Value: TypeAlias = Decimal | Fraction
"""An exact number: a Fraction where the text has a fraction, and else a Decimal. The two compare exactly."""

_LONGEST_EXPONENT = 4  # digits: 10**9999 is far past any answer, and larger powers would fill the memory as fractions
_SPACE = "\N{NARROW NO-BREAK SPACE}"
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}", "-"),
        **dict.fromkeys("\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{HEAVY MINUS SIGN}", "-"),
        **dict.fromkeys("\N{NO-BREAK SPACE}\N{THIN SPACE}\N{FIGURE SPACE}\N{HAIR SPACE}", _SPACE),
        **dict.fromkeys("\N{FRACTION SLASH}\N{DIVISION SLASH}\N{FULLWIDTH SOLIDUS}", "/"),
        **dict.fromkeys("\N{FULLWIDTH COMMA}\N{ARABIC THOUSANDS SEPARATOR}", ","),
        **dict.fromkeys("\N{FULLWIDTH FULL STOP}\N{ARABIC DECIMAL SEPARATOR}", "."),
        **dict.fromkeys("\N{RIGHT SINGLE QUOTATION MARK}\N{FULLWIDTH APOSTROPHE}", "'"),
        **dict.fromkeys("\N{MIDDLE DOT}\N{DOT OPERATOR}\N{BULLET OPERATOR}\N{ASTERISK OPERATOR}", "×"),
        "\N{FULLWIDTH COLON}": ":",
        "\N{FULLWIDTH DOLLAR SIGN}": "$",
        "\N{FULLWIDTH EQUALS SIGN}": "=",
    }
)
_LATEX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\w\\])(_{1,3})(?=[-+$0-9])([^\s_]+)\1(?!\w)", r"\2"),  # emphasis in Markdown
        (r"\\(?:approx|simeq|sim|equiv|[lg]eq?|to|(?:[lL]ong)?[rR]ightarrow|implies|iff)(?![A-Za-z])", " = "),
        (r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf))\s*\{[^{}0-9]*[:=]\s*\}", " = "),  # \text{Answer: }-5
        (r"\\!", ""),
        (r"\{,\}", ","),
        (r"(?<=[0-9])(?:\\[,;: ]|~)(?=[0-9])", _SPACE),
        (r"\\[,;: ]|~", " "),
        (r"\\([$%#&_])", r"\1"),
        (r"\^\{?\\circ\}?|\\degree", "°"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "×"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(?<=[0-9])\\frac", r" \\frac"),  # 2\frac{1}{2} is 2 1/2
        (r"\\frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}", r"\1/\2"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\1/\2"),
        # What only sets the type of a number; any other command before a number makes something else of it.
        (r"(?<=[A-Za-z])(\}?)\^(?:-?[0-9]+|\{-?[0-9]+\})", r"\1"),  # cm^2, x^2
        (r"_\{[^{}]*\}", ""),
        (r"\\(?:boxed|fbox|underline|emph|text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|mbox)\s*\{", " {"),
        (r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[()\[\]]", " "),
    )
]

_MINUS = r"(?:(?<![0-9A-Za-z)\]}])-|(?:(?<=[=≈])|(?<=[=≈]\ ))-\ )"
_PLAIN = rf"(?:[0-9]+(?:[.,'_:{_SPACE}][0-9]+)*|(?<![.])[.][0-9]+(?:[.,'_:{_SPACE}][0-9]+)*)"
_POWER = (
    r"(?:\^|(?<!\*)\*\*(?=[0-9(+-]))\s*(?P<brace>[{(])?\s*(?P<power>[+-]?[0-9]+)(?(brace)\s*[})])(?![0-9.,]*[0-9])"
)
_NUMERAL = re.compile(
    rf"""
    (?P<minus>{_MINUS})?
    (?:
        (?:[$€£¥₹₩]|(?<!\w)(?:USD|EUR|GBP|CAD|AUD|CHF|CNY|JPY|INR|Rs\.?))\ ?(?P<inner_minus>-)?
      | (?<![\w^])(?<![0-9][.,'_:{_SPACE}])     # not within a word (mp3, m2, x_1) or a numeral, not an exponent
    )
    (?P<numeral>
        (?P<spaced>[0-9]{{1,3}}(?:\ [0-9]{{3}})+(?![0-9]|\ ?/)) # two numbers, or one in groups: nobody can tell
      | (?:(?P<whole>[0-9]+)\ )?(?P<top>{_PLAIN})\ ?/\ ?(?P<bottom>{_PLAIN})(?:\ ?/\ ?{_PLAIN})*
      | (?P<mantissa>{_PLAIN})
        (?:[eE](?P<exponent>[+-]?[0-9]+)(?![0-9.,]*[0-9])
          |(?:\s*[×xX*]\s*10\s*)?{_POWER}
        )?
    )
    (?P<scales>(?:[ -]?(?:{"|".join(_SCALES)})s?\b)*)
    """,
    re.VERBOSE | re.ASCII,
)
# With these behind or before it, what was found is a part of something else.
_NOT_ALONE_BEFORE = re.compile(
    r"(?:\\[A-Za-z]+\s*(?:\[[^\]]*\]\s*)?\{|√\(?|±|\}\s*\{|(?<![=#\s])\^\s*[{(]|[0-9]\.\s*\{)\s*[-+]?$"
)
_DIVISOR = re.compile(r"(?:[0-9)\]}]\s?/\s?|\w/)\(?[-+]?$")
_PERHAPS_MIXED = re.compile(r"[0-9](?:[ \t]+|\s+(?:and|&)\s+)$")  # 2 and 1/2: two numbers, or one
_NOT_ALONE_BEHIND = re.compile(
    r"""
    \s*(?:\^|\*\*(?=[0-9(+-]))      # a power that was not understood
    | [A-Za-z]+[0-9]                # 0x1F, 5d3
    | (?<=\b0)[xX][0-9A-Fa-f]+\b
    | (?:[kKMBGT]|bn|mn)\b          # 5k, 5M: how many zeros is a guess
    | \s*(?:lakhs?|lacs?|crores?)\b
    | \s?/\s?(?:[-+]?[({]|[-+]\s?[0-9])  # divided by what is not plainly a number
    | [十百千万萬億亿兆]
    | \s*(?:[π√]|\\(?:pi|sqrt|frac|tau|ln|log)(?![A-Za-z]))
    | \s*\}\s*\{                    # the upper half of a fraction that was not understood
    | \.?\\(?:overline|bar|dot)
    """,
    re.VERBOSE,
)
_GROUPED = [
    re.compile(pattern)
    for pattern in (
        r"[0-9]+",
        *(rf"[0-9]{{1,3}}(?:{separator}[0-9]{{3}})+" for separator in (",", "'", "_", _SPACE)),
        r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}",  # India: 5,00,000
    )
]


class Numeral(NamedTuple):
    """A numeral in a text: as it is written, and its value; None where that is not understood."""

    text: str
    value: Value | None


def numerals(text: str) -> list[Numeral]:
    """The numerals of a text in their order.

    Understood are digits of any script; groups of three with commas, apostrophes, underscores or no-break spaces,
    and India's; a decimal point; exponents (5e-05, 5 × 10^3, 10⁵); fractions (3/4, 2 1/2, ½, \\frac{3}{4}); LaTeX's
    1{,}300 and \\$5; hundred to trillion behind a number. A percentage is the number before the sign.

    >>> [number.value for number in numerals("1.5e3 or 1,300.5, not 1.300,50")]
    [Decimal('1.5E+3'), Decimal('1300.5'), None]
    """
    plain = _plain(text)
    found = []
    for match in _NUMERAL.finditer(plain):
        before, behind = plain[max(0, match.start("numeral") - 40) : match.start("numeral")], match.end()
        alone = not _NOT_ALONE_BEFORE.search(before) and not _NOT_ALONE_BEHIND.match(plain, behind)
        alone = alone and not _DIVISOR.search(before[-6:])
        alone = alone and not (match["top"] and _PERHAPS_MIXED.search(before))
        found.append(Numeral(match["numeral"], _value(match) if alone else None))
    return found


def _plain(text: str) -> str:
    """The text in ASCII digits and signs: superscripts as ^5, ½ as 1/2, LaTeX's spellings as plain ones."""
    found = []
    raised = False
    for character in text:
        form = unicodedata.decomposition(character)
        if form.startswith("<super>"):
            found.append(("" if raised else "^") + unicodedata.normalize("NFKC", character).replace("\u2212", "-"))
        elif form.startswith("<fraction>"):
            found.append(
                (" " if found and found[-1][-1:].isdigit() else "") + unicodedata.normalize("NFKC", character)
            )
        elif character.isdecimal():
            found.append(str(unicodedata.decimal(character)))
        else:
            found.append(character)
        raised = form.startswith("<super>")
    plain = "".join(found).translate(_CHARACTERS)
    for pattern, replacement in _LATEX:
        plain = pattern.sub(replacement, plain)
    return plain


def _value(match: re.Match[str]) -> Value | None:
    """What a numeral says; None where it is not understood."""
    negative = bool(match["minus"] or match["inner_minus"])
    scale = sum(_SCALES[word.rstrip("s")] for word in re.findall(r"[a-z]+", match["scales"]))
    if match["spaced"]:
        return None
    if match["top"]:
        return _fraction(match, negative) if not scale else None
    digits, power = _digits(match["mantissa"]), match["exponent"] or match["power"]
    if digits is None or len((power or "").lstrip("+-0")) > _LONGEST_EXPONENT:
        return None
    if match["power"] and not re.search(r"[×xX*]\s*10\s*(?:\^|\*\*)", match["numeral"]):
        if digits != "10":  # 2^10 is a calculation
            return None
        digits = "1"
    return Decimal(f"{'-' if negative else ''}{digits}e{int(power or 0) + scale}")


def _fraction(match: re.Match[str], negative: bool) -> Fraction | None:
    """The value of 3/4 or 2 1/2."""
    if match["numeral"].count("/") != 1:
        return None  # a date
    top, bottom, whole = (_digits(match[name] or "0") for name in ("top", "bottom", "whole"))
    if top is None or bottom is None or whole is None or max(map(len, (top, bottom, whole))) > 10**_LONGEST_EXPONENT:
        return None
    parts = [Fraction(Decimal(part)) for part in (top, bottom, whole)]
    if parts[1] == 0 or (match["whole"] and parts[0] >= parts[1]):
        return None
    value = parts[2] + parts[0] / parts[1]
    return -value if negative else value


def _digits(text: str) -> str | None:
    """A plain numeral without its groups, as `Decimal` reads it; None where the separators fit no notation."""
    whole, point, decimals = text.partition(".")
    if point and not decimals.isdigit():
        return None
    if whole and not any(pattern.fullmatch(whole) for pattern in _GROUPED):
        return None
    return re.sub(r"[^0-9]", "", whole or "0") + point + decimals
