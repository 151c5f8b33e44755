"""Text from models and data sets, made safe to look at: what cannot be seen is shown by its name."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\ufdd0-\ufdef\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with control, direction and invisible characters replaced by visible names.

    Newline and tab stay. C0 controls become control pictures (U+0000 is shown as U+2400), others their code point.
    A page can then neither be reordered by a direction override nor lose a null byte to the HTML parser.

    >>> visible("a\\x00b\\u202ec")
    'a␀b⟨U+202E⟩c'
    """
    return _HIDDEN.sub(_name, text)


def _name(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def minus(text: str) -> str:
    """Numbers with the true minus sign, for pages."""
    return text.replace("-", "−")
