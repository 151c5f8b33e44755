"""What every page is made with: templates in which all text is made visible and escaped, and the script's hash."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from densepath.report.records import Estimate
from densepath.report.table import format_interval
from densepath.report.text import minus, visible


def make_environment(**filters: Callable[..., Any]) -> Environment:
    """Jinja over `report/templates`; every string that is printed passes through `visible` and is escaped."""
    environment = Environment(
        loader=PackageLoader("densepath.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "num": _number(".{}f", 3),
        "signed": _number("+.{}f", 2),
        "g": _number(".{}g", 4),
        "share": lambda value: "–" if value is None else f"{100 * value:.1f} %",
        **filters,
    }
    return environment


def interval(estimate: Estimate | None, digits: int = 3, signed: bool = False) -> Markup:
    """`mean [low, high]` with the interval in a lighter voice."""
    text = minus(format_interval(estimate, digits, signed=signed, missing="–"))
    mean, bracket, rest = text.partition(" [")
    return Markup("<strong>{}</strong> <small>{}</small>").format(mean, bracket.strip() + rest)


def duration(seconds: float | None) -> str:
    """A time as seconds, minutes or hours."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def asset(name: str) -> str:
    """A style sheet or script that lies beside the templates."""
    return (resources.files("densepath.report") / "templates" / name).read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """The SHA-256 by which a content security policy allows one inline script, in base64."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _number(form: str, usual: int) -> Callable[..., str]:
    """A filter that writes a number with so many digits, and a dash where it is not known."""

    def write(value: float | None, digits: int = usual) -> str:
        return "–" if value is None else minus(format(value, form.format(digits)))

    return write


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
