"""The one door into HTML and SVG: whatever is text is made visible and escaped where its element is made."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from markupsafe import Markup, escape

from densepath.report.text import visible

_EMPTY = frozenset({"meta", "link", "input", "br"})

Attribute = str | int | float | bool | None


def element(tag: str, *children: str | None, **attributes: Attribute) -> Markup:
    """An element with its children, of which strings are text and Markup is elements.

    Args:
        tag: its name.
        children: what it holds; None is left out.
        attributes: `class_` is class, the first underscore within a name a hyphen; None and False are left out, True
            stands without a value.
    """
    named = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-", 1)
        named.append(f" {name}" if value is True else f' {name}="{text(str(value))}"')
    start = f"<{tag}{''.join(named)}>"
    if tag in _EMPTY:
        return Markup(start)
    return Markup(f"{start}{''.join(text(child) for child in children if child is not None)}</{tag}>")


def text(value: str) -> Markup:
    """Text as it may stand between elements and in an attribute; Markup as it is."""
    return value if isinstance(value, Markup) else escape(visible(value))


def join(parts: list[Markup] | tuple[Markup, ...]) -> Markup:
    """Elements after one another, a line each."""
    return Markup("\n").join(parts)


def asset(name: str) -> Markup:
    """A style sheet, a script or a form of our own that lies beside this file."""
    return Markup((resources.files("densepath.report") / "assets" / name).read_text(encoding="utf-8"))


def content_policy(script: str = "", *, live: bool = False) -> str:
    """What a page may do: nothing from outside; run its one script; where a server is behind it, ask that alone.

    Args:
        script: the inline script, allowed by its SHA-256; none if empty.
        live: whether a server is behind the page.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"script-src 'sha256-{digest}'; " if script else ""
    connect = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; {scripts}{connect}"
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
